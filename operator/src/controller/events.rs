//! What events tell of a model: each change of `Ready`, and not each try of a download; and each
//! change of the vector space.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};

use super::report;
use crate::crd::status::{ConditionType, EmbeddingModelStatus, Reason};

/// What to tell when `Ready` changes, or its reason.
pub fn transition(old: Option<&EmbeddingModelStatus>, new: &EmbeddingModelStatus) -> Option<Event> {
    let now = new.condition(ConditionType::Ready)?;
    if old.is_some_and(|old| is_told(old, new)) {
        return None;
    }
    let degraded = new.holds(ConditionType::Degraded);
    Some(event(if degraded { EventType::Warning } else { EventType::Normal }, now))
}

/// What to tell when the vector space changes, or would if that were not refused.
pub fn space_change(old: Option<&EmbeddingModelStatus>, new: &EmbeddingModelStatus) -> Option<Event> {
    let said = |status: &EmbeddingModelStatus| {
        let holds = status.holds(ConditionType::SpaceChanged);
        status.condition(ConditionType::SpaceChanged).filter(|_| holds).map(|it| it.message.clone())
    };
    let now = new.condition(ConditionType::SpaceChanged).filter(|_| said(new).is_some())?;
    (old.and_then(said) != said(new)).then(|| event(EventType::Warning, now))
}

fn event(type_: EventType, condition: &Condition) -> Event {
    let message = &condition.message;
    Event {
        type_,
        reason: condition.reason.clone(),
        // The API server takes 1024 bytes.
        note: Some(message[..message.floor_char_boundary(1000)].to_owned()),
        action: "Reconcile".into(),
        secondary: None,
    }
}

/// Whether the last event said it already.
fn is_told(old: &EmbeddingModelStatus, new: &EmbeddingModelStatus) -> bool {
    let ready = |status: &EmbeddingModelStatus| {
        status.condition(ConditionType::Ready).map(|ready| (ready.status.clone(), ready.reason.clone()))
    };
    ready(old) == ready(new) || (retried(old).is_some() && retried(old) == retried(new))
}

/// The failure of a download that keeps a model from being ready, between two tries or in the
/// next: it is one for as long as its cause is the same.
fn retried(status: &EmbeddingModelStatus) -> Option<(Reason, &str)> {
    let failure = report::failing_download(status)?;
    let ready = &status.condition(ConditionType::Ready)?.reason;
    [Reason::Fetching, failure.0].into_iter().any(|reason| reason.name() == *ready).then_some(failure)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `Ready` with this reason and message, and whether `Degraded` is as bad.
    fn status(reason: &str, message: &str, degraded: Option<(&str, &str)>) -> EmbeddingModelStatus {
        let condition = |type_: &str, holds: bool, reason: &str, message: &str| {
            json!({
                "type": type_,
                "status": if holds { "True" } else { "False" },
                "reason": reason,
                "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        };
        let (why, says) = degraded.unwrap_or(("Healthy", "nothing is wrong"));
        serde_json::from_value(json!({"conditions": [
            condition("Ready", reason == "Ready", reason, message),
            condition("Degraded", degraded.is_some(), why, says),
        ]}))
        .unwrap()
    }

    /// The type and reason of each event of a model that goes through these.
    fn told(statuses: &[EmbeddingModelStatus]) -> Vec<(EventType, String)> {
        let mut old = None;
        let mut events = Vec::new();
        for new in statuses {
            events.extend(transition(old, new).map(|event| (event.type_, event.reason)));
            old = Some(new);
        }
        events
    }

    fn failed(reason: &str, why: &str, next: &str) -> EmbeddingModelStatus {
        let says = format!("fetching a/b: {why}; next try at {next}");
        status(reason, &says, Some((reason, &says)))
    }

    fn again(reason: &str, why: &str) -> EmbeddingModelStatus {
        status("Fetching", "a/b is being fetched, try 2", Some((reason, &format!("fetching a/b: {why}"))))
    }

    #[test]
    fn each_change_of_ready_is_told_once() {
        let fetches = status("Fetching", "a/b is being fetched", None);
        let (normal, warning) = (EventType::Normal, EventType::Warning);
        let pod = |message: &str| status("CrashLoop", message, Some(("CrashLoop", message)));
        assert_eq!(
            told(&[fetches.clone(), fetches, pod("one"), pod("two"), status("Ready", "yes", None)]),
            [(normal, "Fetching".into()), (warning, "CrashLoop".into()), (normal, "Ready".into())]
        );
    }

    #[test]
    fn tries_of_a_download_are_told_when_their_cause_changes() {
        let warning = |reason: &str| (EventType::Warning, reason.to_owned());
        assert_eq!(
            told(&[
                failed("FetchFailed", "no room", "10:00"),
                again("FetchFailed", "no room"),
                failed("FetchFailed", "no room", "10:05"),
                again("FetchFailed", "no room"),
                failed("FetchFailed", "timeout", "10:15"),
                again("FetchFailed", "timeout"),
                failed("SourceRefused", "401", "10:30"),
                // What the user does in between is told, and what is so after it.
                status("Paused", "paused", Some(("SourceRefused", "fetching a/b: 401"))),
                failed("SourceRefused", "401", "10:30"),
            ]),
            [
                warning("FetchFailed"),
                warning("FetchFailed"),
                warning("SourceRefused"),
                warning("Paused"),
                warning("SourceRefused"),
            ]
        );
    }

    #[test]
    fn each_change_of_the_vector_space_is_told_once() {
        let space = |holds: bool, reason: &str, message: &str| {
            let mut status = status("Ready", "yes", None);
            let mut condition = status.conditions[0].clone();
            condition.type_ = "SpaceChanged".into();
            condition.status = if holds { "True" } else { "False" }.into();
            (condition.reason, condition.message) = (reason.into(), message.into());
            status.conditions.push(condition);
            status
        };
        let known = space(false, "SpaceUnchanged", "vectors are of the space a");
        let changed = space(true, "SpaceChangeAllowed", "of b, and were of a");
        let refused = space(true, "SpaceChangeRefused", "c is refused");
        let mut told = Vec::new();
        let mut old = None;
        for new in [&known, &changed, &changed, &refused, &refused, &changed, &known, &changed] {
            let event = space_change(old, new);
            told.extend(event.map(|event| (event.type_, event.reason, event.note.unwrap())));
            old = Some(new);
        }
        let allowed =
            || (EventType::Warning, "SpaceChangeAllowed".to_owned(), "of b, and were of a".to_owned());
        let refused = (EventType::Warning, "SpaceChangeRefused".to_owned(), "c is refused".to_owned());
        assert_eq!(told, [allowed(), refused, allowed(), allowed()]);
    }

    #[test]
    fn a_note_is_cut_between_characters() {
        let event = transition(None, &status("Fetching", &"ä".repeat(1001), None)).unwrap();
        assert_eq!(event.note.unwrap(), "ä".repeat(500));
    }
}
