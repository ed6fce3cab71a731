//! Leader election against a real API server. What does not need one is tested beside the
//! code.
#![allow(missing_docs, reason = "tests say what they test by their names")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use embedding_operator::lease::{Elector, Timing};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use support::cluster::{ControlPlane, Namespace};
use support::wait::{wait_for, wait_for_object};
use tokio_util::sync::CancellationToken;

const NAME: &str = "operator";
const PATIENCE: Duration = Duration::from_secs(30);
const TIMING: Timing = Timing {
    duration: Duration::from_secs(3),
    renew_deadline: Duration::from_secs(2),
    retry: Duration::from_millis(200),
};

fn elector(client: Client, namespace: &Namespace, identity: &str) -> Elector {
    Elector::new(client, namespace, NAME, identity.to_owned(), TIMING)
}

fn leases(plane: &ControlPlane, namespace: &Namespace) -> Api<Lease> {
    Api::namespaced(plane.client(), namespace)
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

async fn patch(leases: &Api<Lease>, patch: Value) {
    leases.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
}

/// Acquires, and does work that never ends; says whether the work was dropped.
struct Worker {
    working: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<bool>,
}

struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Worker {
    fn start(mut elector: Elector) -> Self {
        let working = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&working);
        let task = tokio::spawn(async move {
            assert!(elector.acquire(&CancellationToken::new()).await);
            shared.store(true, Ordering::SeqCst);
            let guard = Dropped(shared);
            let work = async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            };
            elector.while_held(work).await
        });
        Self { working, task }
    }

    fn works(&self) -> bool {
        self.working.load(Ordering::SeqCst)
    }

    async fn begins(&self) {
        let begun = async || if self.works() { Ok(()) } else { Err("it does not work") };
        wait_for("a replica to work", PATIENCE, begun).await;
    }

    /// Whether it ended by itself, as after a loss.
    async fn stops(self) {
        let ended = tokio::time::timeout(PATIENCE, self.task).await.expect("it ends").expect("no panic");
        assert!(!ended, "the work came to its end, which it has not");
        assert!(!self.working.load(Ordering::SeqCst), "the work goes on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_try_at_once_one_gets_it() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("race").await;
    let workers: Vec<_> = (0..8)
        .map(|number| Worker::start(elector(plane.client(), &namespace, &format!("replica-{number}"))))
        .collect();
    let leases = leases(plane, &namespace);
    wait_for_object(&leases, NAME, "a holder", PATIENCE, |lease| holder(lease).is_some()).await;
    // Longer than the lease lasts without renewals.
    let watched = Instant::now();
    while watched.elapsed() < TIMING.duration + Duration::from_secs(1) {
        assert!(workers.iter().filter(|worker| worker.works()).count() <= 1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(workers.iter().filter(|worker| worker.works()).count(), 1);
    let lease = leases.get(NAME).await.unwrap();
    assert_eq!(lease.spec.unwrap().lease_transitions, Some(1));
    for worker in workers {
        worker.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_dies_is_followed_when_its_lease_is_over() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("dies").await;
    let first = Worker::start(elector(plane.client(), &namespace, "first"));
    first.begins().await;
    let second = Worker::start(elector(plane.client(), &namespace, "second"));
    tokio::time::sleep(TIMING.duration + Duration::from_millis(500)).await;
    assert!(!second.works(), "the first one renews");
    first.task.abort();
    let died = Instant::now();
    second.begins().await;
    let took = died.elapsed();
    assert!(took > TIMING.renew_deadline, "too early: {took:?}");
    let lease = leases(plane, &namespace).get(NAME).await.unwrap();
    assert_eq!(holder(&lease), Some("second"));
    assert_eq!(lease.spec.unwrap().lease_transitions, Some(2));
    second.task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_lease_is_taken_at_once() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("released").await;
    let mut first = elector(plane.client(), &namespace, "first");
    assert!(first.acquire(&CancellationToken::new()).await);
    assert!(first.while_held(async {}).await, "the work came to its end");
    let second = Worker::start(elector(plane.client(), &namespace, "second"));
    tokio::time::sleep(TIMING.retry * 3).await;
    assert!(!second.works());
    first.release().await;
    let released = Instant::now();
    second.begins().await;
    let took = released.elapsed();
    assert!(took < TIMING.renew_deadline, "no sooner than without a release: {took:?}");

    // What is another's is not released.
    first.release().await;
    assert_eq!(holder(&leases(plane, &namespace).get(NAME).await.unwrap()), Some("second"));
    second.task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_ends_when_another_takes_the_lease() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("stolen").await;
    let worker = Worker::start(elector(plane.client(), &namespace, "first"));
    worker.begins().await;
    let leases = leases(plane, &namespace);
    patch(&leases, json!({"spec": {"holderIdentity": "thief"}})).await;
    let stolen = Instant::now();
    worker.stops().await;
    assert!(stolen.elapsed() < TIMING.renew_deadline, "{:?}", stolen.elapsed());
    assert_eq!(holder(&leases.get(NAME).await.unwrap()), Some("thief"), "it is not taken back");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_ends_before_the_lease_is_over_when_it_cannot_be_renewed() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("barred").await;
    let bind = ["create", "rolebinding", "elector", "--clusterrole=cluster-admin", "--namespace", &namespace];
    let account = format!("--serviceaccount={namespace}:default");
    let bound = plane.kubectl(&[&bind[..], &[&account]].concat()).await;
    assert!(bound.status.success(), "{bound:?}");
    let client = plane.client_of_service_account(&namespace, "default").await;
    let worker = Worker::start(elector(client, &namespace, "first"));
    worker.begins().await;
    let leases = leases(plane, &namespace);
    let unbound = plane.kubectl(&["delete", "rolebinding", "elector", "--namespace", &namespace]).await;
    assert!(unbound.status.success(), "{unbound:?}");
    let begun = Instant::now();
    worker.stops().await;
    // Some renewals may have come through until the binding was gone everywhere.
    let renewed = leases.get(NAME).await.unwrap().spec.unwrap().renew_time.unwrap().0;
    let since_renewal = jiff::Timestamp::now().duration_since(renewed).unsigned_abs();
    assert!(since_renewal < TIMING.duration, "another could have begun: {since_renewal:?}");
    assert!(begun.elapsed() > TIMING.renew_deadline / 2, "it tries again: {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_somebody_meddles_with_is_kept() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("meddled").await;
    let worker = Worker::start(elector(plane.client(), &namespace, "first"));
    worker.begins().await;
    let leases = leases(plane, &namespace);
    // Conflicts with a renewal now and then.
    for number in 0..60 {
        patch(&leases, json!({"metadata": {"annotations": {"example.com/n": number.to_string()}}})).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let old = leases.get(NAME).await.unwrap().uid();
    leases.delete(NAME, &DeleteParams::default()).await.unwrap();
    wait_for_object(&leases, NAME, "made anew", PATIENCE, |lease| {
        lease.uid() != old && holder(lease) == Some("first")
    })
    .await;
    tokio::time::sleep(TIMING.duration).await;
    assert!(worker.works());
    worker.task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_can_be_told_to_stop() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("waits").await;
    let first = Worker::start(elector(plane.client(), &namespace, "first"));
    first.begins().await;
    let stop = CancellationToken::new();
    let mut second = elector(plane.client(), &namespace, "second");
    let waiting = second.acquire(&stop);
    let stopping = async {
        tokio::time::sleep(TIMING.retry).await;
        stop.cancel();
    };
    let (acquired, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(waiting, stopping) }).await.unwrap();
    assert!(!acquired);
    first.task.abort();
}
