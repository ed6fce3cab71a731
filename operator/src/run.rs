//! The operator from beginning to end: connect, serve /healthz, wait for the lease,
//! reconcile, release the lease.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::api::ListParams;
use kube::{Api, Client, Config};
use rand::Rng as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Ready};
use crate::config::Cli;
use crate::controller::{self, Context};
use crate::crd::EmbeddingModel;
use crate::lease::{Elector, Timing};
use crate::metrics::Metrics;

/// Between two tries to reach the API server.
const RETRY: Duration = Duration::from_secs(5);
/// How long the first request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// How long an answer may stop on its way. Watches end by themselves a little earlier.
const READ: Duration = Duration::from_secs(295);
/// How long what is under way gets to end when the operator is told to stop.
const DRAIN: Duration = Duration::from_secs(15);
/// Between two looks at whether it has.
const QUIET: Duration = Duration::from_millis(200);

/// Runs the operator until SIGTERM or SIGINT, or until it loses its lease.
pub async fn run(cli: Arc<Cli>) -> anyhow::Result<()> {
    let stop = stop_on_signals()?;
    let metrics = Arc::new(Metrics::new());
    let ready = Arc::new(Ready::default());
    let listener = TcpListener::bind(cli.admin_address)
        .await
        .with_context(|| format!("cannot listen on --admin-address {}", cli.admin_address))?;
    let address = listener.local_addr().context("cannot tell the address that is listened on")?;
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "started");
    let router = admin::router(Arc::clone(&metrics), Arc::clone(&ready));
    tokio::spawn(async move { axum::serve(listener, router).await });

    let mut config =
        Config::infer().await.context("cannot find a cluster: no kubeconfig, and not in a pod")?;
    config.read_timeout = Some(READ);
    tracing::info!(cluster = %config.cluster_url, "connecting");
    let client = Client::try_from(config).context("cannot connect to the cluster")?;
    let namespaces = cli.namespaces();
    if stop.run_until_cancelled(defined(&client, &namespaces, &ready)).await.is_none() {
        return Ok(());
    }
    ready.set();
    let context = Context::new(client.clone(), cli.config(), Arc::clone(&metrics));
    let work = reconcile(context, &namespaces, cli.concurrency, &stop);
    if !cli.leader_election {
        work.await;
        return Ok(());
    }
    let identity = cli.identity.clone().unwrap_or_else(identity);
    let mut elector =
        Elector::new(client, &cli.lease_namespace, &cli.lease_name, identity.clone(), Timing::default());
    metrics.leads(&cli.lease_name, false);
    if !elector.acquire(&stop).await {
        return Ok(());
    }
    metrics.leads(&cli.lease_name, true);
    tracing::info!(lease = cli.lease_name, identity, "has the lease");
    let ended = elector.while_held(work).await;
    metrics.leads(&cli.lease_name, false);
    if !ended {
        bail!("lost the lease {}: ending, to be started anew", cli.lease_name);
    }
    elector.release().await;
    Ok(())
}

/// Reconciles until told to stop, and what is under way has ended or took too long.
async fn reconcile(context: Arc<Context>, namespaces: &[String], concurrency: u16, stop: &CancellationToken) {
    use futures_util::FutureExt as _;
    let stopping = stop.clone();
    let stopping = async move { stopping.cancelled().await }.shared();
    let metrics = Arc::clone(&context.metrics);
    metrics.limit(concurrency);
    // The controllers end by themselves only once they have seen all models.
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(QUIET).await;
        while metrics.active() > 0 {
            tokio::time::sleep(QUIET).await;
        }
    };
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
        tracing::warn!("what is under way is left: it takes too long to end");
    };
    tokio::select! {
        () = controller::run(context, namespaces, concurrency, stopping) => {}
        () = drained => {}
        () = overdue => {}
    }
}

/// Waits until the API server is there, knows `EmbeddingModels`, and lets us see them.
async fn defined(client: &Client, namespaces: &[String], ready: &Ready) {
    let models: Api<EmbeddingModel> = match namespaces.first() {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    loop {
        let asked = tokio::time::timeout(REQUEST, models.list(&ListParams::default().limit(1))).await;
        let reason = match asked {
            Ok(Ok(_)) => return,
            // By the code: where the whole group is unknown, the answer is no Status.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                "the cluster has no EmbeddingModels: kubectl apply -f crds/".to_owned()
            }
            Ok(Err(error)) => controller::told(&error),
            Err(_) => format!("no answer in {} s", REQUEST.as_secs()),
        };
        tracing::warn!(reason, "waiting for the API server");
        ready.waits(&format!("waiting for the API server: {reason}"));
        tokio::time::sleep(RETRY).await;
    }
}

fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: what is under way ends");
        stopping.cancel();
    });
    Ok(stop)
}

fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{:08x}", host.trim(), rand::rng().random::<u32>())
}
