//! Leader election: of several replicas, the one that holds a Lease reconciles.
//!
//! # Flow
//!
//! A replica takes the lease when nobody holds it, or when its holder has not renewed it for
//! as long as the lease lasts, by this replica's own clock: clocks of two machines are never
//! compared. The holder renews it, and gives up by itself when that did not work for a
//! while that is shorter than the lease.
//!
//! # Guarantees
//!
//! Every write carries the version that was read, so of two replicas that try at once one
//! fails. A holder stops its work before another replica can begin: it counts from before
//! its last renewal was sent, the other from when it saw it. A holder that is told to stop
//! releases the lease when its work has ended.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::controller::told;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(5);

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a lease lasts that is not renewed: whole seconds.
    pub duration: Duration,
    /// How long a holder tries to renew before it gives up: less than `duration`.
    pub renew_deadline: Duration,
    /// Between two tries.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// What was last seen of the lease, and when: by this machine's clock.
#[derive(Clone, Debug)]
struct Seen {
    holder: Option<String>,
    renewals: Option<MicroTime>,
    since: Instant,
}

/// What a look at the lease comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// Ours already: renew it.
    Renew,
    /// Nobody's, or left by its holder: take it.
    Take,
    /// Somebody else's.
    Wait,
}

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    /// The lease is ours.
    Held,
    /// It is somebody else's.
    Theirs,
    /// Somebody wrote to it meanwhile: the next try tells.
    Conflict,
}

/// What one replica knows and wants: pure, time is a parameter.
#[derive(Clone, Debug)]
struct View {
    identity: String,
    timing: Timing,
    seen: Option<Seen>,
}

impl View {
    fn decide(&mut self, spec: &LeaseSpec, now: Instant) -> Decision {
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
        let changed = self
            .seen
            .as_ref()
            .is_none_or(|seen| (&seen.holder, &seen.renewals) != (&holder, &spec.renew_time));
        if changed {
            self.seen = Some(Seen { holder: holder.clone(), renewals: spec.renew_time.clone(), since: now });
        }
        let since = self.seen.as_ref().map_or(now, |seen| seen.since);
        let lasts = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lasts = lasts.map_or(self.timing.duration, Duration::from_secs);
        match holder {
            None => Decision::Take,
            Some(holder) if holder == self.identity => Decision::Renew,
            Some(_) if now.duration_since(since) > lasts => Decision::Take,
            Some(_) => Decision::Wait,
        }
    }

    /// The lease as it is when it is ours.
    fn held(&self, old: &LeaseSpec, decision: Decision, now: Timestamp) -> LeaseSpec {
        let now = MicroTime(now);
        let taken = decision == Decision::Take;
        LeaseSpec {
            acquire_time: if taken { Some(now.clone()) } else { old.acquire_time.clone() },
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.timing.duration.as_secs()).unwrap_or(i32::MAX)),
            lease_transitions: Some(old.lease_transitions.unwrap_or(0).saturating_add(i32::from(taken))),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }
}

/// A replica that takes part.
#[derive(Debug)]
pub struct Elector {
    api: Api<Lease>,
    name: String,
    view: View,
    /// When the last renewal that worked began.
    renewed: Option<Instant>,
}

impl Elector {
    /// For the lease `name`.
    pub fn new(client: Client, namespace: &str, name: &str, identity: String, timing: Timing) -> Self {
        let view = View { identity, timing, seen: None };
        Self { api: Api::namespaced(client, namespace), name: name.into(), view, renewed: None }
    }

    /// Waits until the lease is ours; false when `stop` comes first.
    pub async fn acquire(&mut self, stop: &CancellationToken) -> bool {
        loop {
            match self.try_once().await {
                Ok(Try::Held) => return true,
                Ok(Try::Theirs | Try::Conflict) => {}
                Err(error) => {
                    tracing::warn!(error = told(&error), lease = self.name, "cannot get the lease");
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(self.view.timing.retry)).await.is_none() {
                return false;
            }
        }
    }

    /// Does `work` while the lease is ours. True when it came to its end; false when the
    /// lease was lost, and the work was dropped wherever it was.
    pub async fn while_held(&mut self, work: impl Future<Output = ()>) -> bool {
        tokio::select! {
            () = work => true,
            () = self.keep() => false,
        }
    }

    /// Renews the lease until it is lost.
    async fn keep(&mut self) {
        let timing = self.view.timing;
        loop {
            let deadline = self.renewed.unwrap_or_else(Instant::now) + timing.renew_deadline;
            tokio::time::sleep_until(deadline.min(Instant::now() + timing.retry)).await;
            match tokio::time::timeout_at(deadline, self.try_once()).await {
                Ok(Ok(Try::Held)) => continue,
                Ok(Ok(Try::Theirs)) => {
                    tracing::error!(lease = self.name, "another replica has the lease");
                    return;
                }
                Ok(Ok(Try::Conflict)) | Err(_) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = told(&error), lease = self.name, "cannot renew the lease");
                }
            }
            if Instant::now() >= deadline {
                tracing::error!(lease = self.name, "the lease could not be renewed in time");
                return;
            }
        }
    }

    /// Gives the lease back, so that another replica need not wait until it is over.
    pub async fn release(&mut self) {
        let released = async {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(self.view.identity.as_str()) {
                return Ok(());
            }
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            self.api.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
        };
        match tokio::time::timeout(REQUEST, released).await {
            Ok(Ok(())) => tracing::info!(lease = self.name, "released the lease"),
            Ok(Err(error)) => {
                tracing::warn!(error = told(&error), lease = self.name, "cannot release the lease");
            }
            Err(_) => tracing::warn!(lease = self.name, "cannot release the lease: no answer"),
        }
    }

    /// Looks at the lease, and takes or renews it where it may.
    async fn try_once(&mut self) -> Result<Try, kube::Error> {
        let begun = Instant::now();
        let trying = async {
            let params = PostParams::default();
            let Some(mut lease) = self.api.get_opt(&self.name).await? else {
                let spec = self.view.held(&LeaseSpec::default(), Decision::Take, Timestamp::now());
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                return written(self.api.create(&params, &Lease { metadata, spec: Some(spec) }).await);
            };
            let spec = lease.spec.clone().unwrap_or_default();
            let decision = self.view.decide(&spec, Instant::now());
            if decision == Decision::Wait {
                return Ok(Try::Theirs);
            }
            lease.spec = Some(self.view.held(&spec, decision, Timestamp::now()));
            written(self.api.replace(&self.name, &params, &lease).await)
        };
        let ended = tokio::time::timeout(REQUEST, trying).await;
        let ended =
            ended.map_err(|_| kube::Error::Service("the API server did not answer in time".into()))??;
        if ended == Try::Held {
            self.renewed = Some(begun);
        }
        Ok(ended)
    }
}

/// Somebody else was faster: that is no error.
fn written(result: Result<Lease, kube::Error>) -> Result<Try, kube::Error> {
    match result {
        Ok(_) => Ok(Try::Held),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
            Ok(Try::Conflict)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn view(identity: &str) -> View {
        View { identity: identity.to_owned(), timing: Timing::default(), seen: None }
    }

    fn lease(holder: &str, renewed: i64, lasts: Option<i32>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            lease_duration_seconds: lasts,
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn what_is_nobodys_is_taken_and_what_is_ours_renewed() {
        let now = Instant::now();
        assert_eq!(view("a").decide(&LeaseSpec::default(), now), Decision::Take);
        assert_eq!(view("a").decide(&lease("", 0, Some(15)), now), Decision::Take);
        assert_eq!(view("a").decide(&lease("a", 0, Some(15)), now), Decision::Renew);
        assert_eq!(view("a").decide(&lease("b", 0, Some(15)), now), Decision::Wait);
    }

    #[test]
    fn what_is_not_renewed_for_as_long_as_it_lasts_by_our_own_clock_is_taken() {
        let begin = Instant::now();
        // What the other's clock says does not matter: it may be years off.
        for renewed in [0, 4_000_000_000] {
            for (lasts, seconds) in [(Some(15), 15), (Some(3), 3), (None, 15), (Some(-1), 15)] {
                let mut view = view("a");
                let spec = lease("b", renewed, lasts);
                let end = begin + SECOND * seconds;
                assert_eq!(view.decide(&spec, begin), Decision::Wait);
                assert_eq!(view.decide(&spec, end), Decision::Wait, "{lasts:?}");
                assert_eq!(view.decide(&spec, end + Duration::from_millis(1)), Decision::Take, "{lasts:?}");
            }
        }
    }

    #[test]
    fn each_renewal_and_each_new_holder_counts_from_anew() {
        let (mut view, begin) = (view("a"), Instant::now());
        let late = begin + SECOND * 16;
        assert_eq!(view.decide(&lease("b", 0, Some(15)), begin), Decision::Wait);
        assert_eq!(view.decide(&lease("b", 1, Some(15)), late), Decision::Wait, "renewed");
        assert_eq!(view.decide(&lease("c", 1, Some(15)), late + SECOND * 15), Decision::Wait, "another");
        assert_eq!(view.decide(&lease("c", 1, Some(15)), late + SECOND * 30), Decision::Wait);
        assert_eq!(view.decide(&lease("c", 1, Some(15)), late + SECOND * 31), Decision::Take);
    }

    #[test]
    fn taking_counts_a_transition_and_renewing_does_not() {
        let view = view("a");
        let (first, later) = (Timestamp::from_second(1).unwrap(), Timestamp::from_second(2).unwrap());
        let taken = view.held(&lease("b", 0, Some(1)), Decision::Take, first);
        assert_eq!((taken.lease_transitions, taken.lease_duration_seconds), (Some(1), Some(15)));
        let renewed = view.held(&taken, Decision::Renew, later);
        assert_eq!((renewed.lease_transitions, renewed.acquire_time), (Some(1), taken.acquire_time));
        assert_eq!(renewed.renew_time, Some(MicroTime(later)));
    }

    /// A replica in the simulation.
    struct Replica {
        view: View,
        /// What was read: the lease's version, what to write, and when the try began.
        read: Option<(u32, LeaseSpec, Instant)>,
        working_from: Option<Instant>,
    }

    proptest! {
        // However tries interleave, fail and are delayed.
        #[test]
        fn no_two_replicas_ever_work_at_once(
            steps in prop::collection::vec((0usize..3, 0u64..6_000, prop::bool::weighted(0.2)), 1..200),
        ) {
            let timing = Timing::default();
            let (mut now, mut version, mut stored) = (Instant::now(), 0u32, LeaseSpec::default());
            let mut replicas = ["a", "b", "c"].map(|name| Replica { view: view(name), read: None, working_from: None });
            for (step, (who, wait, fails)) in (1i64..).zip(steps) {
                now += Duration::from_millis(wait);
                let replica = &mut replicas[who];
                match replica.read.take() {
                    None => {
                        let decision = replica.view.decide(&stored, now);
                        if decision == Decision::Wait {
                            replica.working_from = None;
                        } else {
                            let time = Timestamp::from_second(step).unwrap();
                            replica.read = Some((version, replica.view.held(&stored, decision, time), now));
                        }
                    }
                    Some((read, spec, begun)) if read == version => {
                        (version, stored) = (version + 1, spec);
                        // It may have been written without an answer that says so.
                        if !fails && now < begun + REQUEST {
                            replica.working_from = Some(begun);
                        }
                    }
                    Some(_) => {}
                }
                let working = replicas.iter().filter(|replica| {
                    replica.working_from.is_some_and(|begun| now < begun + timing.renew_deadline)
                });
                prop_assert!(working.count() <= 1);
            }
        }
    }
}
