//! The operator while the API server fails, answers late, or is away, and while operators die.
#![allow(missing_docs, reason = "tests say what they test by their names")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use embedding_operator::controller::build::names;
use embedding_operator::controller::object::Kind;
use http::{Method, Request, Response};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::client::Body;
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use support::cluster::ControlPlane;
use support::operator::{Operator, USER, change, config, create, hub};
use support::state::{World, differences, is_settled, wait_until_settled};
use support::wait::{wait_for, wait_for_object};
use tokio::sync::{OnceCell, Semaphore};
use tower::BoxError;

/// After failures the operator waits longer and longer.
const PATIENCE: Duration = Duration::from_mins(2);

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Delivered,
    /// It never arrives, and this is answered.
    Refused(u16),
    /// It is done, and the connection breaks before the answer.
    Cut,
    /// Of a watch: it is too old.
    Expired,
    /// It is done, and whoever asked for it dies.
    Last,
}

fn is_write(request: &Request<Body>) -> bool {
    request.method() != Method::GET
}

fn is_watch(request: &Request<Body>) -> bool {
    request.uri().query().is_some_and(|query| query.contains("watch=true"))
}

/// A client whose requests meet their fate. Of those after `Fate::Last`, none is delivered.
fn client_through(
    inner: Client,
    died: &Arc<Semaphore>,
    fate: impl Fn(&Request<Body>) -> Fate + Send + Sync + 'static,
) -> Client {
    let (fate, died) = (Arc::new(fate), Arc::clone(died));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (inner, died, fate) = (inner.clone(), Arc::clone(&died), Arc::clone(&fate));
        async move {
            if died.available_permits() > 0 {
                std::future::pending::<()>().await;
            }
            match fate(&request) {
                Fate::Delivered => Ok(inner.send(request).await?),
                Fate::Refused(code) => Ok(refusal(code)),
                Fate::Expired => Ok(expired()),
                Fate::Cut => {
                    inner.send(request).await?;
                    Err(BoxError::from("connection reset by peer"))
                }
                Fate::Last => {
                    inner.send(request).await?;
                    died.add_permits(1);
                    std::future::pending().await
                }
            }
        }
    });
    Client::new(service, "default")
}

fn refusal(code: u16) -> Response<Body> {
    let (reason, message) = match code {
        409 => ("Conflict", "the object has been modified; please apply your changes to the latest version"),
        429 => ("TooManyRequests", "too many requests, please try again later"),
        _ => ("InternalError", "an error on the server has prevented the request from succeeding"),
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    Response::builder()
        .status(code)
        .header("Content-Type", "application/json")
        .header("Retry-After", "1")
        .body(Body::from(status.to_string().into_bytes()))
        .expect("a response")
}

fn expired() -> Response<Body> {
    let event = json!({"type": "ERROR", "object": {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version: 1 (2)", "reason": "Expired", "code": 410,
    }});
    Response::builder()
        .header("Content-Type", "application/json")
        .body(Body::from(format!("{event}\n").into_bytes()))
        .expect("a response")
}

fn first() -> Value {
    json!({
        "source": hub(),
        "replicas": 2,
        "cache": {"accessModes": ["ReadWriteMany"]},
        "resources": {"requests": {"cpu": "1"}},
        "network": {"allowFrom": [{"podSelector": {"matchLabels": {"app": "a"}}}]},
    })
}

/// Everything changes: another source, pods, the number's owner, and an object goes.
fn second() -> Value {
    json!({
        "source": {"huggingFace": {"repo": "org/name", "revision": "v2"}},
        "replicas": 2,
        "cache": {"accessModes": ["ReadWriteMany"]},
        "resources": {"requests": {"cpu": "2"}},
        "autoscaling": {"minReplicas": 2, "maxReplicas": 4},
    })
}

async fn replace_spec(world: &World<'_>, spec: &Value) {
    let mut patch = spec.clone();
    for gone in ["network", "autoscaling"] {
        if patch[gone].is_null() {
            patch[gone] = Value::Null;
        }
    }
    change(&world.models, "m", json!({"spec": patch})).await;
}

/// What an operator that nothing happens to makes of the two specs.
async fn undisturbed(plane: &ControlPlane) -> &'static [BTreeMap<String, String>; 2] {
    static STATES: OnceCell<[BTreeMap<String, String>; 2]> = OnceCell::const_new();
    STATES.get_or_init(|| undisturbed_run(plane)).await
}

async fn undisturbed_run(plane: &ControlPlane) -> [BTreeMap<String, String>; 2] {
    let world = World::new(plane, "undisturbed").await;
    let operator = world.operator(config());
    create(&world.models, "m", first()).await;
    wait_until_settled(&world.models, "m").await;
    let one = settled_state(&world).await;
    replace_spec(&world, &second()).await;
    wait_until_settled(&world.models, "m").await;
    let two = settled_state(&world).await;
    operator.stop().await;
    [one, two]
}

/// The state when it has not changed for a while: what is pruned goes after all is ready.
async fn settled_state(world: &World<'_>) -> BTreeMap<String, String> {
    let mut last = world.state("m").await;
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = world.state("m").await;
        if now == last {
            return now;
        }
        last = now;
    }
}

async fn wait_for_state(world: &World<'_>, wanted: &BTreeMap<String, String>) {
    wait_for("the state of an undisturbed run", PATIENCE, async || {
        let different = differences(wanted, &world.state("m").await);
        if different.is_empty() { Ok(()) } else { Err(different.join("\n")) }
    })
    .await;
}

/// Lets operators work that each die after so many writes, until one has nothing to write any
/// more and the model is settled. How many there were.
async fn die_until_settled(world: &World<'_>, writes: usize) -> usize {
    let mut deaths = 0;
    loop {
        let died = Arc::new(Semaphore::new(0));
        let count = AtomicUsize::new(0);
        let client =
            client_through(world.plane.client_as(USER, &["system:masters"]), &died, move |request| {
                let nth = is_write(request) && count.fetch_add(1, Ordering::SeqCst) + 1 == writes;
                if nth { Fate::Last } else { Fate::Delivered }
            });
        let operator = Operator::start_as(client, &world.namespace, config());
        let settled = async {
            wait_for_object(&world.models, "m", "settled", PATIENCE, is_settled).await;
            // A write that comes yet is of this operator's too.
            tokio::time::sleep(Duration::from_secs(2)).await;
        };
        let over = tokio::select! {
            permit = died.acquire() => { permit.expect("it is open").forget(); false }
            () = settled => true,
        };
        operator.kill();
        if over {
            return deaths;
        }
        deaths += 1;
        assert!(deaths < 200, "it does not settle");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_that_die_after_each_write_end_in_the_same_state() {
    let plane = ControlPlane::get().await;
    let [one, two] = undisturbed(plane).await;
    let lives = [1, 2, 3].map(|writes| {
        async move {
            let world = World::new(plane, "mortal").await;
            create(&world.models, "m", first()).await;
            let deaths = die_until_settled(&world, writes).await;
            // Without an operator nothing gets better.
            wait_for_state(&world, one).await;
            replace_spec(&world, &second()).await;
            let more = die_until_settled(&world, writes).await;
            wait_for_state(&world, two).await;
            println!("operators that died after {writes} writes: {deaths} and {more}");
            assert!(deaths + more >= 8 / writes, "{deaths} {more}");
        }
    });
    futures_util::future::join_all(lives).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_is_killed_at_any_write_is_taken_over_from() {
    let plane = ControlPlane::get().await;
    let [one, _] = undisturbed(plane).await;
    // In threes, until a run needed no killing.
    for begin in (1..).step_by(3) {
        let runs = (begin..begin + 3).map(|n| async move {
            let world = World::new(plane, "killed").await;
            let died = Arc::new(Semaphore::new(0));
            let count = AtomicUsize::new(0);
            let real = plane.client_as(USER, &["system:masters"]);
            let client = client_through(real, &died, move |request| {
                let nth = is_write(request) && count.fetch_add(1, Ordering::SeqCst) + 1 == n;
                if nth { Fate::Last } else { Fate::Delivered }
            });
            let operator = Operator::start_as(client, &world.namespace, config());
            create(&world.models, "m", first()).await;
            let killed = tokio::select! {
                permit = died.acquire() => { permit.expect("it is open").forget(); true }
                () = wait_for_state(&world, one) => false,
            };
            operator.kill();
            let next = world.operator(config());
            wait_for_state(&world, one).await;
            next.stop().await;
            killed
        });
        let killed = futures_util::future::join_all(runs).await;
        if !killed.iter().all(|killed| *killed) {
            println!(
                "killed at each of {} writes",
                begin - 1 + killed.iter().filter(|killed| **killed).count()
            );
            assert!(begin > 9, "a model takes more writes than {begin}");
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_is_stopped_before_it_has_seen_the_models_ends() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "early").await;
    for wait in [0, 5, 20] {
        let operator = world.operator(config());
        tokio::time::sleep(Duration::from_millis(wait)).await;
        tokio::time::timeout(Duration::from_secs(20), operator.stop()).await.expect("it ends");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_of_the_api_server_is_got_over() {
    let plane = ControlPlane::get().await;
    let [one, two] = undisturbed(plane).await;
    let fates = [Fate::Refused(409), Fate::Refused(429), Fate::Refused(500), Fate::Cut];
    let cases = fates.iter().flat_map(|fate| [(*fate, true, 3), (*fate, true, 4), (*fate, false, 25)]);
    let cases: Vec<_> = cases.collect();
    for some in cases.chunks(6) {
        let runs = some.iter().map(|&(fate, writes, every)| {
            async move {
                let world = World::new(plane, "faulty").await;
                let (count, failed) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
                let failures = Arc::clone(&failed);
                let real = plane.client_as(USER, &["system:masters"]);
                let client = client_through(real, &Arc::new(Semaphore::new(0)), move |request| {
                    let concerned = is_write(request) == writes && !is_watch(request);
                    // Not at regular distances: a try could meet its failure each time.
                    let nth = || count.fetch_add(1, Ordering::SeqCst) as u32;
                    if concerned && (nth().wrapping_mul(2_654_435_761) >> 16) % every == 0 {
                        failures.fetch_add(1, Ordering::SeqCst);
                        return fate;
                    }
                    Fate::Delivered
                });
                let operator = Operator::start_as(client, &world.namespace, config());
                create(&world.models, "m", first()).await;
                wait_for_state(&world, one).await;
                replace_spec(&world, &second()).await;
                wait_for_state(&world, two).await;
                operator.stop().await;
                let failed = failed.load(Ordering::SeqCst);
                println!("{fate:?} at one of {every} {}: {failed}", if writes { "writes" } else { "reads" });
                assert!(failed > 3, "{fate:?}: only {failed} requests failed");
            }
        });
        futures_util::future::join_all(runs).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_end_or_expire_are_taken_up_again() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "expired").await;
    let (count, failed) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let failures = Arc::clone(&failed);
    let real = plane.client_as(USER, &["system:masters"]);
    let client = client_through(real, &Arc::new(Semaphore::new(0)), move |request| {
        if !is_watch(request) {
            return Fate::Delivered;
        }
        // Twice for each kind that is watched, in different ways.
        let fate = match count.fetch_add(1, Ordering::SeqCst) {
            0..10 => Fate::Expired,
            10..15 => Fate::Refused(500),
            15..20 => Fate::Refused(429),
            20..25 => Fate::Refused(410),
            _ => return Fate::Delivered,
        };
        failures.fetch_add(1, Ordering::SeqCst);
        fate
    });
    let operator = Operator::start_as(client, &world.namespace, config());
    create(&world.models, "m", first()).await;
    wait_for_object(&world.models, "m", "settled", PATIENCE, is_settled).await;
    wait_for("all watches to have failed", PATIENCE, async || match failed.load(Ordering::SeqCst) {
        25.. => Ok(()),
        few => Err(few),
    })
    .await;
    // Each kind is seen again.
    for (kind, child) in world.children("m").await {
        if kind == Kind::PersistentVolumeClaim {
            continue;
        }
        let name = child.name_any();
        world.of(kind).delete(&name, &kube::api::DeleteParams::default()).await.expect("it can be deleted");
        wait_for_object(&world.of(kind), &name, "made anew", PATIENCE, |new| new.uid() != child.uid()).await;
    }
    operator.stop().await;
}

fn writes_since(world: &World<'_>, since: Timestamp) -> Vec<String> {
    let seen = world.plane.audit().user(USER).namespace(&world.namespace).since(since);
    assert!(!seen.is_empty(), "the operator has looked");
    seen.0
        .into_iter()
        .filter(|entry| !["get", "list", "watch"].contains(&entry.verb.as_str()))
        .map(|entry| format!("{} {} {}", entry.verb, entry.uri, entry.status.code))
        .collect()
}

/// Somebody else writes to every object of the model, which makes the operator look.
async fn touch_all(world: &World<'_>, value: &str) -> usize {
    let touch = json!({"metadata": {"annotations": {"example.com/touched": value}}});
    let children = world.children("m").await;
    for (kind, child) in &children {
        let (how, patch) = (PatchParams::default(), Patch::Merge(&touch));
        world.of(*kind).patch(&child.name_any(), &how, &patch).await.expect("anyone may annotate");
    }
    change(&world.models, "m", touch).await;
    children.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_at_once_do_not_fight() {
    let plane = ControlPlane::get().await;
    let [one, two] = undisturbed(plane).await;
    let world = World::new(plane, "two").await;
    let operators = [world.operator(config()), world.operator(config())];
    create(&world.models, "m", first()).await;
    wait_for_state(&world, one).await;
    replace_spec(&world, &second()).await;
    wait_for_state(&world, two).await;
    let _ = settled_state(&world).await;
    let settled = Timestamp::now();
    touch_all(&world, "1").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let writes = writes_since(&world, settled);
    assert!(writes.is_empty(), "{writes:#?}");
    for operator in operators {
        operator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_model_costs_no_writes_whatever_others_do_to_its_objects() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "settled").await;
    let operator = world.operator(config());
    create(&world.models, "m", second()).await;
    wait_until_settled(&world.models, "m").await;
    let _ = settled_state(&world).await;
    let settled = Timestamp::now();
    let mut events = 0;
    for round in 0..6 {
        events += touch_all(&world, &round.to_string()).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let writes = writes_since(&world, settled);
    let looks =
        plane.audit().user(USER).namespace(&world.namespace).since(settled).of("list", "deployments").len();
    println!("{events} events, {looks} looks, {} writes", writes.len());
    assert!(events > 24 && looks > 3, "{events} events, {looks} looks");
    assert!(writes.is_empty(), "{writes:#?}");
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_was_away_is_found_again() {
    let crds = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../crds"));
    let plane = ControlPlane::start(crds).await;
    let world = World::new(&plane, "away").await;
    let operator = world.operator(config());
    create(&world.models, "m", first()).await;
    wait_until_settled(&world.models, "m").await;
    plane.restart_api_server().await;
    replace_spec(&world, &second()).await;
    wait_for_object(&world.models, "m", "settled", PATIENCE, is_settled).await;
    // Watches of children are there again, too.
    let services = world.of(Kind::Service);
    let before = services.get("m").await.expect("the Service");
    services.delete("m", &kube::api::DeleteParams::default()).await.expect("it can be deleted");
    wait_for_object(&services, "m", "made anew", PATIENCE, |new| new.uid() != before.uid()).await;
    assert!(
        world.children("m").await.iter().all(|(_, child)| child.labels().contains_key(names::MODEL_LABEL))
    );
    operator.stop().await;
}
