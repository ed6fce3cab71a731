//! What is known about the model's files: whether they are in the cluster, what was
//! learned about them, and which try of a download is due. Pure: time is a parameter.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use kube::ResourceExt as _;
use serde::{Deserialize, Serialize};

use super::build::{self, names};
use super::object::is_owned_by;
use super::observe::Observed;
use super::validate::{Download, Files, ValidModel};
use crate::config::Config;
use crate::crd::status::Reason;

/// What `embedding-server fetch` tells about a model: its container's termination message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The commit that was fetched; of an archive, its sha256.
    pub commit: String,
    /// The size of the model's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// The architecture's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// The length of its vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<i32>,
    /// The longest input in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<i32>,
    /// Whether the model divides its vectors by their norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalizes: Option<bool>,
    /// The fingerprint of the files, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space_files: Option<String>,
    /// The prompts in the files by name; none where they were too long to be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<BTreeMap<String, String>>,
    /// The name of the prompt of texts of which nothing is said, as the files have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_prompt: Option<String>,
}

/// The state of a model's files.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// They can be served.
    Here(Here),
    /// The volume that they belong into does not exist yet.
    NoVolume,
    /// They are on their way: this try's Job is there or to be made.
    Fetching {
        /// What the Job is about.
        key: String,
        /// Which try.
        attempt: u32,
    },
    /// The last try failed; the next is due later.
    Failed {
        /// What the Job is about.
        key: String,
        /// Which try failed.
        attempt: u32,
        /// What it said.
        why: String,
        /// Whether the hub refused: no repository of that name, or no right to it.
        refused: bool,
        /// When the next is due.
        retry_at: Timestamp,
    },
}

/// Files that can be served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// What a fetch was about; none for files that are not fetched into a volume.
    pub key: Option<String>,
    /// What was learned.
    pub summary: Summary,
}

/// The state of the model's files.
pub fn state(model: &ValidModel, observed: &Observed, config: &Config, now: Timestamp) -> State {
    let here =
        |commit: String| State::Here(Here { key: None, summary: Summary { commit, ..Summary::default() } });
    let download = match &model.files {
        Files::Cached { download, .. } => download,
        Files::Ephemeral(Download::Hub { repo, .. }) => return ephemeral(observed, repo.revision.clone()),
        Files::Ephemeral(Download::Archive(archive)) => return ephemeral(observed, archive.sha256.clone()),
        Files::Claim { claim, .. } => return here(claim.claim_name.clone()),
        Files::Image(image) => {
            return here(image.reference.rsplit_once('@').map_or("", |(_, digest)| digest).to_owned());
        }
    };
    // A volume that was made anew is empty: what was fetched into another does not count.
    let Some(volume) =
        observed.cache(&model.name).filter(|claim| claim.metadata.deletion_timestamp.is_none())
    else {
        return State::NoVolume;
    };
    let key = names::short_hash(&(download.key(), volume.uid()));
    let recorded = recorded(&observed.records(), &names::fetched_record(&model.name, &key));
    if let Some(summary) = recorded.or_else(|| build::served(observed, &key)) {
        return State::Here(Here { key: Some(key), summary });
    }
    let attempts: BTreeMap<u32, Job> = observed
        .jobs()
        .into_iter()
        .filter(|job| job.labels().get(names::FETCH_LABEL) == Some(&key))
        .filter_map(|job| Some((job.labels().get(names::ATTEMPT_LABEL)?.parse().ok()?, job)))
        .filter(|(attempt, _)| *attempt > 0)
        .collect();
    let Some((attempt, job)) = attempts.into_iter().next_back() else {
        return State::Fetching { key, attempt: 1 };
    };
    let refused = last_exit(&observed.pods, &job) == Some(REFUSED);
    let (ended, why) = match end_of(&job) {
        End::Running => return State::Fetching { key, attempt },
        End::Complete(ended) => match summary_of(&observed.pods, &job) {
            Some(summary) => return State::Here(Here { key: Some(key), summary }),
            None => (ended, no_summary(&observed.pods, &job)),
        },
        End::Failed(ended, why) => (ended, last_words(&observed.pods, &job).unwrap_or(why)),
    };
    // Another Secret, proxy or image may be what it takes.
    if job.labels().get(names::FETCH_WITH_LABEL).is_some_and(|with| *with != model.fetch_key) {
        return State::Fetching { key, attempt: attempt.saturating_add(1) };
    }
    let wait = config.fetch_retry * 2u32.pow((attempt - 1).min(5));
    let retry_at = ended.checked_add(jiff::SignedDuration::try_from(wait).unwrap_or_default()).unwrap_or(now);
    if now >= retry_at {
        State::Fetching { key, attempt: attempt.saturating_add(1) }
    } else {
        State::Failed { key, attempt, why, refused, retry_at }
    }
}

/// How long until a download that failed is due again.
pub fn wait(state: &State, now: Timestamp) -> Option<Duration> {
    match state {
        State::Failed { retry_at, .. } => Some(now.duration_until(*retry_at).unsigned_abs()),
        _ => None,
    }
}

/// What pods fetch for themselves is known beforehand, and more when a pod has done so.
fn ephemeral(observed: &Observed, commit: String) -> State {
    let summary = learned(&observed.pods, &commit).unwrap_or(Summary { commit, ..Summary::default() });
    State::Here(Here { key: None, summary })
}

/// What a pod said that fetched this commit for itself.
pub fn learned(pods: &[Pod], commit: &str) -> Option<Summary> {
    pods.iter().find_map(|pod| {
        let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
        let message = statuses
            .iter()
            .find(|status| status.name == names::FETCH)
            .and_then(|status| status.state.as_ref()?.terminated.as_ref()?.message.as_ref())?;
        serde_json::from_str::<Summary>(message).ok().filter(|summary| summary.commit == commit)
    })
}

fn recorded(records: &[ControllerRevision], name: &str) -> Option<Summary> {
    let record = records.iter().find(|record| record.name_any() == name)?;
    serde_json::from_value(record.data.as_ref()?.0.clone()).ok()
}

enum End {
    Running,
    Complete(Timestamp),
    Failed(Timestamp, String),
}

fn end_of(job: &Job) -> End {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    for condition in conditions.iter().filter(|condition| condition.status == "True") {
        let at = condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        match condition.type_.as_str() {
            "Complete" => return End::Complete(at),
            "Failed" => return End::Failed(at, condition.message.clone().unwrap_or_default()),
            _ => {}
        }
    }
    End::Running
}

/// The Job's pods, the newest first.
pub fn pods_of<'a>(pods: &'a [Pod], job: &Job) -> Vec<&'a Pod> {
    let Some(uid) = job.uid() else { return Vec::new() };
    let mut pods: Vec<&Pod> = pods.iter().filter(|pod| is_owned_by(*pod, &uid)).collect();
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.creation_timestamp().map(|time| time.0)));
    pods
}

/// The exit code of `embedding-server fetch` when the hub refuses (`EX_NOPERM` of
/// sysexits.h).
pub(super) const REFUSED: i32 = 77;

/// The word for a download that failed.
pub fn reason(refused: bool) -> Reason {
    if refused { Reason::SourceRefused } else { Reason::FetchFailed }
}

/// What a program said at its end, without what only says that it is an error.
pub fn cause(says: &str) -> &str {
    says.strip_prefix("error: ").unwrap_or(says)
}

/// How a container ended that said nothing.
pub fn ending(ended: &ContainerStateTerminated) -> String {
    let why = ended.reason.as_deref().filter(|why| *why != "Error");
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    format!("it ended with exit code {}{why} and said nothing", ended.exit_code)
}

/// How the Job's pods ended, as far as they are there; the newest first.
fn endings<'a>(pods: &'a [Pod], job: &Job) -> impl Iterator<Item = &'a ContainerStateTerminated> {
    pods_of(pods, job).into_iter().filter_map(|pod| {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        let status = statuses.iter().find(|status| status.name == names::FETCH)?;
        status.state.as_ref()?.terminated.as_ref()
    })
}

fn last_exit(pods: &[Pod], job: &Job) -> Option<i32> {
    endings(pods, job).next().map(|ended| ended.exit_code)
}

fn summary_of(pods: &[Pod], job: &Job) -> Option<Summary> {
    let messages = endings(pods, job).filter_map(|ended| ended.message.as_deref());
    messages.into_iter().find_map(|message| serde_json::from_str(message).ok())
}

fn no_summary(pods: &[Pod], job: &Job) -> String {
    match endings(pods, job).next().map(|ended| ended.message.as_deref().unwrap_or_default()) {
        None => "it completed, but its pod is gone before it could be asked what it learned".into(),
        Some(said) => format!("it completed, but what it said is no summary: {said:?}"),
    }
}

/// What the last of the Job's pods that failed said: the last line of its message.
fn last_words(pods: &[Pod], job: &Job) -> Option<String> {
    let last_line = |text: &str| {
        text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(|line| cause(line).to_owned())
    };
    let said = endings(pods, job).filter_map(|ended| ended.message.as_deref()).find_map(last_line);
    said.or_else(|| endings(pods, job).next().map(ending))
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use serde_json::{Value, json};

    use super::super::diagnose::tests::observed;
    use super::super::validate::validate;
    use super::*;
    use crate::crd::EmbeddingModel;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    fn model() -> ValidModel {
        let model: EmbeddingModel = serde_json::from_value(json!({
            "apiVersion": "embeddings.kagent.dev/v1alpha1",
            "kind": "EmbeddingModel",
            "metadata": {"name": "minilm", "namespace": "default", "uid": "m", "generation": 1},
            "spec": {"source": {"huggingFace": {"repo": "org/name"}}},
        }))
        .unwrap();
        validate(&model, &Observed::default(), &Config::for_tests()).unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        let begin: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        begin + SignedDuration::from_secs(seconds)
    }

    /// A volume and a Job of this try, which ended at second 0, with what its pods said; the
    /// newest last.
    fn after(condition: &str, attempt: u32, pods: &[(i32, &str)]) -> Observed {
        let claim =
            json!({"kind": "PersistentVolumeClaim", "metadata": {"name": "minilm-cache", "uid": "c"}});
        let State::Fetching { key, .. } =
            state(&model(), &observed(&json!({"children": [claim]})), &Config::for_tests(), at(0))
        else {
            panic!("it is to be fetched");
        };
        let job = json!({
            "kind": "Job",
            "metadata": {
                "name": "minilm-fetch-x",
                "uid": "j",
                "labels": {names::FETCH_LABEL: key, names::ATTEMPT_LABEL: attempt.to_string()},
            },
            "status": {"conditions": [{
                "type": condition,
                "status": "True",
                "message": "Job has reached the specified backoff limit",
                "lastTransitionTime": at(0),
            }]},
        });
        let pods: Vec<Value> = pods
            .iter()
            .enumerate()
            .map(|(index, (code, message))| {
                json!({
                    "metadata": {
                        "name": format!("minilm-fetch-x-{index}"),
                        "creationTimestamp": at(index as i64),
                        "ownerReferences": [
                            {"apiVersion": "batch/v1", "kind": "Job", "name": "minilm-fetch-x", "uid": "j"},
                        ],
                    },
                    "status": {"containerStatuses": [{
                        "name": "fetch",
                        "image": "server",
                        "imageID": "",
                        "ready": false,
                        "restartCount": 0,
                        "state": {"terminated": {"exitCode": code, "reason": "Error", "message": message}},
                    }]},
                })
            })
            .collect();
        observed(&json!({"children": [claim, job], "pods": pods}))
    }

    #[test]
    fn what_a_fetch_said_at_last_is_why_it_failed() {
        let table: [(&[(i32, &str)], bool, &str); 6] = [
            (&[(1, "error: connection refused")], false, "connection refused"),
            (&[(1, "error: first"), (77, "some log\nerror: 401 Unauthorized\n\n")], true, "401 Unauthorized"),
            (&[(77, "error: 401"), (1, "error: timeout")], false, "timeout"),
            (&[(1, "error: timeout"), (2, " ")], false, "timeout"),
            (&[(2, "")], false, "it ended with exit code 2 and said nothing"),
            (&[], false, "Job has reached the specified backoff limit"),
        ];
        for (pods, was_refused, said) in table {
            let state = state(&model(), &after("Failed", 1, pods), &Config::for_tests(), at(59));
            let State::Failed { attempt: 1, why, refused, retry_at, .. } = state else {
                panic!("{state:?}");
            };
            assert_eq!((why.as_str(), refused, retry_at), (said, was_refused, at(60)));
        }
    }

    #[test]
    fn each_try_waits_twice_as_long_up_to_a_bound() {
        for (attempt, minutes) in [(1, 1), (2, 2), (3, 4), (5, 16), (6, 32), (7, 32), (1000, 32)] {
            let failed = after("Failed", attempt, &[]);
            let seconds = minutes * 60;
            let early = state(&model(), &failed, &Config::for_tests(), at(seconds - 1));
            assert!(matches!(early, State::Failed { .. }), "{early:?}");
            assert_eq!(wait(&early, at(seconds - 1)), Some(Duration::from_secs(1)));
            let due = state(&model(), &failed, &Config::for_tests(), at(seconds));
            assert!(matches!(&due, State::Fetching { attempt: next, .. } if *next == attempt + 1), "{due:?}");
            assert_eq!(wait(&due, at(seconds)), None);
        }
    }

    #[test]
    fn a_fetch_that_completed_tells_what_it_learned_or_is_done_again() {
        let summary = format!(r#"{{"commit":"{COMMIT}","dimensions":384,"unknown":true}}"#);
        let here = state(&model(), &after("Complete", 2, &[(0, &summary)]), &Config::for_tests(), at(0));
        let State::Here(here) = here else { panic!("{here:?}") };
        assert_eq!((here.summary.commit.as_str(), here.summary.dimensions), (COMMIT, Some(384)));
        for (pods, said) in
            [(&[][..], "its pod is gone"), (&[(0, "Segmentation fault")][..], "no summary: \"Segmentation")]
        {
            let failed = state(&model(), &after("Complete", 1, pods), &Config::for_tests(), at(0));
            assert!(matches!(&failed, State::Failed { why, .. } if why.contains(said)), "{failed:?}");
        }
    }
}
