//! What is known about the model's files: whether they are in the cluster, what was
//! learned about them, and which try of a download is due. Pure: time is a parameter.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::{Deserialize, Serialize};

use super::build::names;
use super::observe::Observed;
use super::validate::{Download, Files, ValidModel};
use crate::config::Config;

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
    if let Some(summary) = recorded(&observed.records(), &names::fetched_record(&model.name, &key)) {
        return State::Here(Here { key: Some(key), summary });
    }
    let attempts: BTreeMap<u32, Job> = observed
        .jobs()
        .into_iter()
        .filter(|job| job.labels().get(names::FETCH_LABEL) == Some(&key))
        .filter_map(|job| Some((job.labels().get(names::ATTEMPT_LABEL)?.parse().ok()?, job)))
        .collect();
    let Some((attempt, job)) = attempts.into_iter().next_back() else {
        return State::Fetching { key, attempt: 1 };
    };
    let refused = last_exit(&observed.pods, &job) == Some(REFUSED);
    let (ended, why) = match end_of(&job) {
        End::Running => return State::Fetching { key, attempt },
        End::Complete(ended) => match summary_of(&observed.pods, &job) {
            Some(summary) => return State::Here(Here { key: Some(key), summary }),
            None => (ended, "it completed, but its pod is gone or said nothing".to_owned()),
        },
        End::Failed(ended, why) => (ended, last_words(&observed.pods, &job).unwrap_or(why)),
    };
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
    let learned = observed.pods.iter().find_map(|pod| {
        let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
        let message = statuses
            .iter()
            .find(|status| status.name == names::FETCH)
            .and_then(|status| status.state.as_ref()?.terminated.as_ref()?.message.as_ref())?;
        serde_json::from_str::<Summary>(message).ok().filter(|summary| summary.commit == commit)
    });
    let summary = learned.unwrap_or(Summary { commit, ..Summary::default() });
    State::Here(Here { key: None, summary })
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
    let uid = job.uid();
    let mut pods: Vec<&Pod> = pods
        .iter()
        .filter(|pod| pod.owner_references().iter().any(|owner| Some(&owner.uid) == uid.as_ref()))
        .collect();
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.creation_timestamp().map(|time| time.0)));
    pods
}

/// The exit code of `embedding-server fetch` when the hub refuses (`EX_NOPERM` of
/// sysexits.h).
const REFUSED: i32 = 77;

fn last_exit(pods: &[Pod], job: &Job) -> Option<i32> {
    pods_of(pods, job).into_iter().find_map(|pod| {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        Some(
            statuses
                .iter()
                .find(|status| status.name == names::FETCH)?
                .state
                .as_ref()?
                .terminated
                .as_ref()?
                .exit_code,
        )
    })
}

fn messages<'a>(pods: &'a [Pod], job: &Job) -> impl Iterator<Item = &'a str> {
    pods_of(pods, job).into_iter().filter_map(|pod| {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        let status = statuses.iter().find(|status| status.name == names::FETCH)?;
        status.state.as_ref()?.terminated.as_ref()?.message.as_deref()
    })
}

fn summary_of(pods: &[Pod], job: &Job) -> Option<Summary> {
    messages(pods, job).find_map(|message| serde_json::from_str(message).ok())
}

/// What the last of the Job's pods that failed said: the last line of its message.
fn last_words(pods: &[Pod], job: &Job) -> Option<String> {
    let last_line =
        |text: &str| text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned);
    messages(pods, job).find_map(last_line).map(|line| line.trim_start_matches("error: ").to_owned())
}
