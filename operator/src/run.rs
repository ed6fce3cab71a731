//! The operator from beginning to end: connect, serve /healthz, wait for the lease,
//! reconcile, release the lease.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::api::ListParams;
use kube::{Api, Client};
use rand::Rng as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Ready};
use crate::config::Cli;
use crate::controller::{self, Context};
use crate::crd::EmbeddingModel;
use crate::lease::Elector;
use crate::metrics::Metrics;

/// Between two tries to reach the API server.
const RETRY: Duration = Duration::from_secs(5);

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

    let client =
        Client::try_default().await.context("cannot find a cluster: no kubeconfig, and not in a pod")?;
    if !defined(&client, &stop).await {
        return Ok(());
    }
    ready.set();
    let context = Context::new(client.clone(), cli.config(), Arc::clone(&metrics));
    let namespaces = cli.namespaces();
    if !cli.leader_election {
        reconcile(context, &namespaces, cli.concurrency, stop).await;
        return Ok(());
    }
    let identity = cli.identity.clone().unwrap_or_else(identity);
    let mut elector = Elector::new(client, &cli.lease_namespace, &cli.lease_name, identity.clone());
    metrics.leads(&cli.lease_name, false);
    if !elector.acquire(&stop).await {
        return Ok(());
    }
    metrics.leads(&cli.lease_name, true);
    tracing::info!(lease = cli.lease_name, identity, "has the lease");
    // The lease is kept until the last reconcile has ended.
    let (reconciling, ended) = (stop.child_token(), CancellationToken::new());
    let work = async {
        reconcile(context, &namespaces, cli.concurrency, reconciling.clone()).await;
        ended.cancel();
    };
    let keep = async {
        elector.keep(&ended).await;
        // Lost, unless all has ended: stop at once, another replica may have begun.
        reconciling.cancel();
    };
    tokio::join!(work, keep);
    metrics.leads(&cli.lease_name, false);
    if !stop.is_cancelled() {
        bail!("lost the lease {}: ending, to be started anew", cli.lease_name);
    }
    elector.release().await;
    Ok(())
}

async fn reconcile(context: Arc<Context>, namespaces: &[String], concurrency: u16, stop: CancellationToken) {
    use futures_util::FutureExt as _;
    let stopping = async move { stop.cancelled().await }.shared();
    controller::run(context, namespaces, concurrency, stopping).await;
}

/// Waits until the API server is there and knows `EmbeddingModels`; false when told to stop.
async fn defined(client: &Client, stop: &CancellationToken) -> bool {
    let models: Api<EmbeddingModel> = Api::all(client.clone());
    loop {
        let wait = match models.list(&ListParams::default().limit(1)).await {
            Ok(_) => return true,
            // It may only be allowed to see some namespaces; watching will tell.
            Err(kube::Error::Api(status)) if status.is_forbidden() => return true,
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                "the cluster has no EmbeddingModels: kubectl apply -f crds/".to_owned()
            }
            Err(error) => error.to_string(),
        };
        tracing::warn!(reason = wait, "waiting for the API server");
        if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
            return false;
        }
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
