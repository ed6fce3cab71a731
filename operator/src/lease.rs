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
//! fails. A holder that is told to stop releases the lease when its work has ended.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a lease lasts that is not renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How long a holder tries to renew before it gives up.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(2);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(5);

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

/// A replica that takes part.
#[derive(Debug)]
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    seen: Option<Seen>,
}

impl Elector {
    /// For the lease `name`.
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.into(), identity, seen: None }
    }

    /// Waits until the lease is ours; false when `stop` comes first.
    pub async fn acquire(&mut self, stop: &CancellationToken) -> bool {
        loop {
            match self.try_once().await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), lease = self.name, "cannot get the lease");
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                return false;
            }
        }
    }

    /// Keeps the lease until `stop`, or until it is lost.
    pub async fn keep(&mut self, stop: &CancellationToken) {
        let mut renewed = Instant::now();
        while stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_some() {
            match self.try_once().await {
                Ok(true) => renewed = Instant::now(),
                Ok(false) => {
                    tracing::error!(lease = self.name, "another replica has the lease");
                    return;
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), lease = self.name, "cannot renew the lease");
                    if renewed.elapsed() > RENEW_DEADLINE {
                        return;
                    }
                }
            }
        }
    }

    /// Gives the lease back, so that another replica need not wait until it is over.
    pub async fn release(&mut self) {
        let released = async {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
                return Ok(());
            }
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            self.api.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
        };
        match tokio::time::timeout(REQUEST, released).await {
            Ok(Ok(())) => tracing::info!(lease = self.name, "released the lease"),
            Ok(Err(error)) => {
                tracing::warn!(error = %Chain(&error), lease = self.name, "cannot release the lease");
            }
            Err(_) => tracing::warn!(lease = self.name, "cannot release the lease: no answer"),
        }
    }

    /// Whether the lease is ours after one try.
    async fn try_once(&mut self) -> Result<bool, kube::Error> {
        let trying = async {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else {
                return self.create().await;
            };
            let spec = lease.spec.clone().unwrap_or_default();
            let decision = self.decide(&spec, Instant::now());
            if decision == Decision::Wait {
                return Ok(false);
            }
            lease.spec = Some(self.held(&spec, decision));
            self.write(self.api.replace(&self.name, &PostParams::default(), &lease).await)
        };
        match tokio::time::timeout(REQUEST, trying).await {
            Ok(result) => result,
            Err(_) => Err(kube::Error::Service("the API server did not answer in time".into())),
        }
    }

    async fn create(&self) -> Result<bool, kube::Error> {
        let lease = Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: Some(self.held(&LeaseSpec::default(), Decision::Take)),
        };
        self.write(self.api.create(&PostParams::default(), &lease).await)
    }

    /// Somebody else was faster: that is no error.
    #[expect(clippy::unused_self, reason = "reads as what the elector does")]
    fn write(&self, result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
        match result {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

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
        let lasts = lasts.map_or(DURATION, Duration::from_secs);
        match holder {
            None => Decision::Take,
            Some(holder) if holder == self.identity => Decision::Renew,
            Some(_) if now.duration_since(since) > lasts => Decision::Take,
            Some(_) => Decision::Wait,
        }
    }

    fn held(&self, old: &LeaseSpec, decision: Decision) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let taken = decision == Decision::Take;
        LeaseSpec {
            acquire_time: if taken { Some(now.clone()) } else { old.acquire_time.clone() },
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(DURATION.as_secs()).unwrap_or(i32::MAX)),
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(taken)),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }
}

/// An error with its causes.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
