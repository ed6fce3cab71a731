//! Where servers run, and what becomes of them when nodes are drained and lost: the real scheduler
//! and controllers, several nodes, and nobody who really runs a pod.
#![allow(missing_docs, reason = "tests say what they test by their names")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

#[path = "placement/availability.rs"]
mod availability;
mod support;
#[path = "placement/world.rs"]
mod world;

use std::collections::BTreeMap;

use availability::Availability;
use embedding_operator::crd::EmbeddingModel;
use embedding_operator::crd::status::Strategy;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt as _;
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use support::operator::{PATIENCE, change, create, hub, is, message, wait_until, wait_until_ready};
use support::volumes::Provisioner;
use support::wait::{wait_for, wait_for_object};
use world::{Cluster, HOSTNAME, Machine, WAIT, World, ZONE, is_ready};

/// A model that any node can run: it is an image.
fn image() -> Value {
    json!({"image": {"reference": format!("registry.test/minilm@sha256:{}", "0".repeat(64))}})
}

fn places(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    expected.iter().map(|(place, number)| ((*place).to_owned(), *number)).collect()
}

/// Waits until all servers of a model are ready in these places, and the model says so. When
/// nodes change, the model may still say what was so before.
async fn wait_until_at(world: &World<'_>, model: &str, expected: &[(&str, usize)]) {
    let expected = places(expected);
    let moved = |pods: &[Pod]| world.places_of(pods) == expected && pods.iter().all(is_ready);
    world.wait_for_servers(model, &format!("servers at {expected:?}"), moved).await;
    wait_until_ready(&world.models, model).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_spread_over_nodes_also_after_a_rollout() {
    let world = Cluster::shared().await.world("spread").await;
    for machine in ["a", "b", "c"] {
        world.add(Machine::new(machine)).await;
    }
    let _operator = world.operator();
    create(&world.models, "minilm", json!({"source": image(), "replicas": 3})).await;
    wait_until_ready(&world.models, "minilm").await;
    assert_eq!(world.places("minilm").await, places(&[("a", 1), ("b", 1), ("c", 1)]));
    for turn in 0..4 {
        let annotations = json!({"example.test/turn": turn.to_string()});
        change(&world.models, "minilm", json!({"spec": {"podTemplate": {"annotations": annotations}}})).await;
        wait_until_ready(&world.models, "minilm").await;
        assert_eq!(world.places("minilm").await, places(&[("a", 1), ("b", 1), ("c", 1)]), "turn {turn}");
    }
    // As far as there are nodes.
    change(&world.models, "minilm", json!({"spec": {"replicas": 6}})).await;
    wait_until_ready(&world.models, "minilm").await;
    assert_eq!(world.places("minilm").await, places(&[("a", 2), ("b", 2), ("c", 2)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_spread_over_zones_where_the_spec_says_so() {
    let world = Cluster::shared().await.world("zones").await;
    for (machine, zone) in [("a", "one"), ("b", "one"), ("c", "one"), ("d", "two")] {
        world.add(Machine::new(machine).zone(zone)).await;
    }
    let _operator = world.operator();
    // The selector is the operator's: without one a constraint would be about no pod.
    let zones = json!([{"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule"}]);
    let spec = json!({"source": image(), "replicas": 4, "podTemplate": {"topologySpreadConstraints": zones}});
    create(&world.models, "minilm", spec).await;
    wait_until_ready(&world.models, "minilm").await;
    let placed = world.places("minilm").await;
    assert_eq!((placed.values().sum::<usize>(), placed.get("d")), (4, Some(&2)), "{placed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_run_where_the_pod_template_says_and_nowhere_else() {
    let world = Cluster::shared().await.world("selected").await;
    world.add(Machine::new("plain")).await;
    world.add(Machine::new("fast").label("example.test/disk", "ssd")).await;
    let dedicated = Machine::new("dedicated").label("example.test/pool", "models");
    world.add(dedicated.taint("example.test/dedicated")).await;
    let _operator = world.operator();
    let own = json!({"key": "example.test/dedicated", "operator": "Exists", "effect": "NoSchedule"});
    let ssd = json!({"key": "example.test/disk", "operator": "In", "values": ["ssd"]});
    let on_ssd = json!({"nodeSelectorTerms": [{"matchExpressions": [ssd]}]});
    let other = json!({"labelSelector": {"matchLabels": {"team": "search"}}, "topologyKey": HOSTNAME});
    let pools = json!({"example.test/pool": "models"});
    let (untainted, both) = ([("fast", 1), ("plain", 1)], [("dedicated", 1), ("fast", 1), ("plain", 1)]);
    let table = [
        ("anywhere", json!({}), 2, places(&untainted)),
        ("tolerant", json!({"tolerations": [own]}), 3, places(&both)),
        ("chosen", json!({"tolerations": [own], "nodeSelector": pools}), 2, places(&[("dedicated", 2)])),
        (
            "required",
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": on_ssd}}}),
            2,
            places(&[("fast", 2)]),
        ),
        (
            "apart",
            json!({
                "labels": {"team": "search"},
                "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [other]}},
            }),
            2,
            places(&untainted),
        ),
    ];
    for (name, template, replicas, _) in &table {
        let spec = json!({"source": image(), "replicas": replicas, "podTemplate": template});
        create(&world.models, name, spec).await;
    }
    for (name, _, _, expected) in &table {
        wait_until_ready(&world.models, name).await;
        assert_eq!(world.places(name).await, *expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_node_says_why_and_runs_when_one_becomes_right() {
    let world = Cluster::shared().await.world("nowhere").await;
    world.add(Machine::new("a")).await;
    let _operator = world.operator();
    let spec = json!({"source": image(), "podTemplate": {"nodeSelector": {"example.test/pool": "models"}}});
    create(&world.models, "minilm", spec).await;
    let model = wait_until(&world.models, "minilm", "Ready", "False", "Unschedulable").await;
    let said = message(&model, "Ready");
    assert!(said.contains("node(s) didn't match Pod's node affinity/selector"), "{said}");
    assert!(is(&model, "Stalled", "True", "Unschedulable"), "{model:?}");
    world.change_node("a", json!({"metadata": {"labels": {"example.test/pool": "models"}}})).await;
    wait_until_ready(&world.models, "minilm").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_with_a_gpu_waits_for_a_node_that_has_one() {
    let world = Cluster::shared().await.world("gpu").await;
    world.add(Machine::new("plain")).await;
    let _operator = world.operator();
    create(&world.models, "minilm", json!({"source": image(), "gpu": {"count": 2}})).await;
    let model = wait_until(&world.models, "minilm", "Ready", "False", "Unschedulable").await;
    let said = message(&model, "Ready");
    assert!(said.contains("Insufficient nvidia.com/gpu"), "{said}");
    let with_gpus = |name| Machine::new(name).allocatable("nvidia.com/gpu", "2").taint("nvidia.com/gpu");
    world.add(with_gpus("first")).await;
    wait_until_ready(&world.models, "minilm").await;
    assert_eq!(world.places("minilm").await, places(&[("first", 1)]));

    // GPUs are not shared.
    change(&world.models, "minilm", json!({"spec": {"replicas": 2}})).await;
    let model = wait_until(&world.models, "minilm", "Ready", "False", "Unschedulable").await;
    assert!(is(&model, "Available", "True", "Ready"), "{model:?}");
    world.add(with_gpus("second")).await;
    wait_until_ready(&world.models, "minilm").await;
    assert_eq!(world.places("minilm").await, places(&[("first", 1), ("second", 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_moves_the_replicas_of_a_node_one_at_a_time() {
    let world = Cluster::shared().await.world("drain").await;
    for machine in ["a", "b"] {
        world.add(Machine::new(machine)).await;
    }
    let _operator = world.operator();
    create(&world.models, "minilm", json!({"source": image(), "replicas": 4})).await;
    wait_until_ready(&world.models, "minilm").await;
    assert_eq!(world.places("minilm").await, places(&[("a", 2), ("b", 2)]));
    let availability = Availability::watch(&world, "minilm").await;
    world.drain("a").await;
    wait_until_at(&world, "minilm", &[("b", 4)]).await;
    assert_eq!(availability.least(), 3, "of four replicas one may be away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_drain_waits_until_the_replica_that_the_first_moved_is_ready() {
    let world = Cluster::shared().await.world("drains").await;
    for machine in ["a", "b", "c"] {
        world.add(Machine::new(machine)).await;
    }
    let _operator = world.operator();
    let spec = json!({"source": image(), "replicas": 3, "podTemplate": {"annotations": {WAIT: "true"}}});
    create(&world.models, "minilm", spec).await;
    let first = world.wait_for_servers("minilm", "three pods that run", |pods| run(pods) == 3).await;
    for pod in &first {
        world.release(pod).await;
    }
    wait_until_ready(&world.models, "minilm").await;
    assert_eq!(world.places("minilm").await, places(&[("a", 1), ("b", 1), ("c", 1)]));
    let availability = Availability::watch(&world, "minilm").await;
    let moved = |pods: &[Pod]| -> Vec<Pod> {
        pods.iter().filter(|pod| first.iter().all(|old| old.uid() != pod.uid())).cloned().collect()
    };

    for machine in ["a", "b"] {
        world.change_node(machine, json!({"spec": {"unschedulable": true}})).await;
    }
    let play = async {
        let one = world.wait_for_servers("minilm", "one that moved", |pods| run(&moved(pods)) == 1).await;
        // kubectl asks every five seconds.
        wait_for("the other drain to be refused, twice", PATIENCE, async || {
            let refused = world.evictions().into_iter().filter(|code| *code == 429).count();
            if refused >= 2 { Ok(()) } else { Err(format!("{refused} times")) }
        })
        .await;
        let now = world.servers("minilm").await;
        assert_eq!((now.len(), moved(&now).len(), availability.least()), (3, 1, 2), "{now:?}");
        world.release(&moved(&one)[0]).await;
        let two = world.wait_for_servers("minilm", "two that moved", |pods| run(&moved(pods)) == 2).await;
        for pod in moved(&two) {
            world.release(&pod).await;
        }
    };
    tokio::join!(world.drain("a"), world.drain("b"), play);
    wait_until_at(&world, "minilm", &[("c", 3)]).await;
    assert_eq!(availability.least(), 2, "of three replicas one may be away");
}

/// How many pods run.
fn run(pods: &[Pod]) -> usize {
    let runs = |pod: &&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    pods.iter().filter(runs).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_not_ready_does_not_hold_up_a_drain() {
    let world = Cluster::shared().await.world("broken").await;
    for machine in ["a", "b"] {
        world.add(Machine::new(machine)).await;
    }
    let _operator = world.operator();
    let spec = json!({"source": image(), "replicas": 2, "podTemplate": {"annotations": {WAIT: "true"}}});
    create(&world.models, "minilm", spec).await;
    let pods = world.wait_for_servers("minilm", "two pods that run", |pods| run(pods) == 2).await;
    world.release(&pods[0]).await;
    let budgets = world.api::<PodDisruptionBudget>();
    wait_for_object(&budgets, "minilm", "one healthy pod", PATIENCE, |budget| {
        let status = budget.status.clone().unwrap_or_default();
        (status.current_healthy, status.disruptions_allowed) == (1, 0)
    })
    .await;
    let refused = world.evict(&pods[0]).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 429), "{refused}");
    world.evict(&pods[1]).await.unwrap();
    world
        .wait_for_servers("minilm", "another pod", |now| {
            run(now) == 2 && now.iter().all(|pod| pod.uid() != pods[1].uid())
        })
        .await;
}

/// A model whose files are in a volume of one node at a time.
async fn create_cached(world: &World<'_>, name: &str, class: &str, replicas: i32) {
    let spec = json!({"source": hub(), "replicas": replicas, "cache": {"storageClassName": class}});
    create(&world.models, name, spec).await;
}

/// The only node where the model runs.
async fn only_place(world: &World<'_>, model: &str) -> String {
    let placed = world.places(model).await;
    assert_eq!(placed.len(), 1, "{placed:?}");
    placed.into_keys().next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_the_node_of_their_volume_and_move_together_within_its_zone() {
    let world = Cluster::shared().await.world("zonal").await;
    for (machine, zone) in [("a", "one"), ("b", "one"), ("c", "two"), ("d", "two")] {
        world.add(Machine::new(machine).zone(zone)).await;
    }
    let _volumes = Provisioner::start_near(world.plane, &world.namespace, "zonal", ZONE).await;
    let _operator = world.operator();
    create_cached(&world, "minilm", "zonal", 3).await;
    wait_until_ready(&world.models, "minilm").await;
    let first = only_place(&world, "minilm").await;
    let neighbours = BTreeMap::from([("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")]);
    let second = neighbours[&*first];
    assert!(world.api::<PodDisruptionBudget>().get_opt("minilm").await.unwrap().is_none());
    world.drain(&first).await;
    world.leave(&first, "minilm").await;
    wait_until_at(&world, "minilm", &[(second, 3)]).await;

    // There is no third node in the zone.
    world.drain(second).await;
    let model = wait_until(&world.models, "minilm", "Ready", "False", "Unschedulable").await;
    let said = message(&model, "Ready");
    assert!(said.contains("PersistentVolume's node affinity") && said.contains("unschedulable"), "{said}");
    world.leave(second, "minilm").await;
    wait_until(&world.models, "minilm", "Available", "False", "Unavailable").await;
    world.change_node(&first, json!({"spec": {"unschedulable": null}})).await;
    wait_until_at(&world, "minilm", &[(&first, 3)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_made_where_the_gpus_are() {
    let world = Cluster::shared().await.world("gpus").await;
    for (machine, zone) in [("a", "one"), ("b", "two"), ("c", "two")] {
        world.add(Machine::new(machine).zone(zone)).await;
    }
    let gpus = Machine::new("gpus").zone("three").allocatable("nvidia.com/gpu", "2");
    world.add(gpus.taint("nvidia.com/gpu")).await;
    let _volumes = Provisioner::start_near(world.plane, &world.namespace, "local", HOSTNAME).await;
    let _operator = world.operator();
    let cache = json!({"storageClassName": "local"});
    create(&world.models, "minilm", json!({"source": hub(), "gpu": {"count": 2}, "cache": cache})).await;
    wait_until_ready(&world.models, "minilm").await;
    assert_eq!(world.places("minilm").await, places(&[("gpus", 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_takes_away_its_replicas_and_its_volume_until_it_is_declared_off() {
    let world = Cluster::shared().await.world("lost").await;
    for machine in ["a", "b", "c"] {
        world.add(Machine::new(machine).zone("one")).await;
    }
    let _volumes = Provisioner::start_near(world.plane, &world.namespace, "zonal", ZONE).await;
    let _operator = world.operator();
    create(&world.models, "spread", json!({"source": image(), "replicas": 3})).await;
    create_cached(&world, "cached", "zonal", 1).await;
    wait_until_ready(&world.models, "spread").await;
    wait_until_ready(&world.models, "cached").await;
    let lost = only_place(&world, "cached").await;
    assert_eq!(world.places("spread").await, places(&[("a", 1), ("b", 1), ("c", 1)]));

    world.lose(&lost).await;
    let model = wait_until(&world.models, "spread", "Ready", "False", "ReplicasUnavailable").await;
    assert_eq!(message(&model, "Available"), "2 of 3 replicas can embed");
    wait_until(&world.models, "cached", "Available", "False", "Unavailable").await;

    world.declare_off(&lost).await;
    wait_until_ready(&world.models, "spread").await;
    world.leave(&lost, "cached").await;
    wait_until_ready(&world.models, "cached").await;
    for model in ["spread", "cached"] {
        let placed = world.places(model).await;
        assert!(!placed.contains_key(&lost), "{model}: {placed:?} without {lost}");
    }
}

/// The operator reads the scheduler's words about all nodes, so there are no others.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_without_room_beside_the_volume_gets_on() {
    let cluster = Cluster::start().await;
    let world = cluster.world("full").await;
    let _volumes = Provisioner::start_near(world.plane, &world.namespace, "zonal", ZONE).await;
    let _operator = world.operator();
    // Of eight processors of a node.
    let spec = |cpus: &str| {
        let cache = json!({"storageClassName": "zonal"});
        json!({"source": hub(), "cache": cache, "resources": {"requests": {"cpu": cpus}}})
    };
    world.add(Machine::new("a").zone("one")).await;
    create(&world.models, "stays", spec("5")).await;
    wait_until_ready(&world.models, "stays").await;
    for machine in ["b", "c"] {
        world.add(Machine::new(machine).zone("two")).await;
    }
    create(&world.models, "moves", spec("5")).await;
    wait_until_ready(&world.models, "moves").await;
    let env = json!([{"name": "RUST_LOG", "value": "debug"}]);
    change(&world.models, "stays", json!({"spec": {"podTemplate": {"env": env}}})).await;
    change(&world.models, "moves", json!({"spec": spec("6")})).await;
    // Both say why they wait until it is sure that nothing else helps.
    for name in ["stays", "moves"] {
        wait_until(&world.models, name, "Ready", "False", "Unschedulable").await;
    }
    tokio::join!(
        rolls_out(&world, "stays", Strategy::NoSurge),
        rolls_out(&world, "moves", Strategy::Recreate),
    );
    for name in ["stays", "moves"] {
        wait_until_ready(&world.models, name).await;
    }
    assert_eq!(world.places("stays").await, places(&[("a", 1)]));
}

/// Waits until a model is rolled out in this way; no moment is missed, however short.
async fn rolls_out(world: &World<'_>, name: &str, strategy: Strategy) {
    let rolls_out = |model: Option<&EmbeddingModel>| {
        let rollout = model.and_then(|model| model.status.as_ref()?.rollout.as_ref());
        rollout.is_some_and(|rollout| rollout.strategy == strategy)
    };
    let waited = tokio::time::timeout(PATIENCE, await_condition(world.models.clone(), name, rolls_out)).await;
    waited.unwrap_or_else(|_| panic!("{name} was not rolled out by {strategy:?}")).unwrap();
}
