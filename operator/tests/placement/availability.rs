//! How many servers of a model were ready all the time.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use embedding_operator::controller::build::names;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::world::{World, is_ready};

/// Watches until it is dropped: no moment is missed, however short.
pub(crate) struct Availability {
    least: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Availability {
    /// Begins to count.
    pub(crate) async fn watch(world: &World<'_>, model: &str) -> Self {
        let least = Arc::new(AtomicUsize::new(usize::MAX));
        let (begun, begins) = oneshot::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(count(world.api(), names::server_selector(model), Arc::clone(&least), begun));
        begins.await.expect("the watch begins");
        Self { least, _tasks: tasks }
    }

    /// The least number of servers that were ready at once, and not about to go.
    pub(crate) fn least(&self) -> usize {
        self.least.load(Ordering::SeqCst)
    }
}

async fn count(pods: Api<Pod>, selector: String, least: Arc<AtomicUsize>, begun: oneshot::Sender<()>) {
    let mut begun = Some(begun);
    let mut ready = HashMap::new();
    let watched = watcher::Config::default().labels(&selector);
    let mut events = pin!(watcher(pods, watched).default_backoff());
    while let Some(event) = events.next().await {
        let serves = |pod: &Pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none();
        match event {
            Ok(watcher::Event::Init) => {
                ready.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(pod)) => {
                ready.insert(pod.uid(), serves(&pod));
                continue;
            }
            Ok(watcher::Event::Apply(pod)) => _ = ready.insert(pod.uid(), serves(&pod)),
            Ok(watcher::Event::Delete(pod)) => _ = ready.remove(&pod.uid()),
            Ok(watcher::Event::InitDone) => {}
            // It lists anew.
            Err(_) => continue,
        }
        least.fetch_min(ready.values().filter(|ready| **ready).count(), Ordering::SeqCst);
        if let Some(begun) = begun.take() {
            let _ = begun.send(());
        }
    }
}
