//! `serve` from beginning to end.
//!
//! ```text
//! check directories ─ bind ─ listen ─┬─ load models one after the other ─ ready
//!                                    └─ SIGTERM ─ /health fails ─ requests finish ─ workers end
//! ```
//!
//! What can be known before listening ends the process: a missing directory, a bad
//! configuration, a port in use. So does, once it is found, a directory whose weights
//! cannot be served: only its owner can mend it. A hub that cannot be reached is
//! reported by `/health` and tried again: it mends itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::config::{DefaultModel, Serve, Sources};
use crate::fetch::{self, Fetched, Log, Progress, Source};
use crate::kernels::cpu::Cpu;
use crate::metrics::Metrics;
use crate::model::weights::Weights;
use crate::model::{self, Directory};
use crate::models::{self, LoadError, Models, Origin, Settings, Spec, State, one_line};
use crate::tokenize::Pool;
use crate::worker::panic_line;
use crate::{accept, http, shutdown};

/// How long a model that could not be fetched waits before the next try.
const RETRY_FETCH: Duration = Duration::from_secs(30);

/// How long the end of the process waits for a model that is being loaded. A download
/// stops at once, reading weights does not.
const LOADER_PATIENCE: Duration = Duration::from_secs(2);

/// Runs the server until it is told to stop.
///
/// # Caveat
///
/// Threads that compute may still be there when it returns. The process has to be left
/// without the destructors of `LibTorch`'s globals (`_exit`), which would pull them away
/// from under such a thread.
pub fn run(config: Serve) -> anyhow::Result<()> {
    for spec in &config.models {
        if let Origin::Directory(path) = &spec.origin {
            let check = || -> Result<(), model::Error> {
                Directory::read(path)?;
                Weights::open(path)?;
                Ok(())
            };
            check().map_err(|error| anyhow::anyhow!("model {}: {}", spec.name, one_line(&error)))?;
        }
    }
    // Decided once here too, so that a device or dtype that cannot be had is no
    // surprise of the first model.
    let preference = config.settings.preference;
    model::Plan::decide(preference, model::Machine::for_choice(preference.device))?;
    #[cfg(feature = "torch")]
    match model::gpus::refused() {
        Some(why) => tracing::warn!("this machine has GPUs, and they are not used: {why}"),
        None => {
            for gpu in model::gpus::loaded().unwrap_or_default() {
                tracing::info!(name = gpu.name, memory_mib = gpu.memory >> 20, "GPU");
            }
        }
    }
    if let Some(why) = Cpu::this().amx_refused() {
        tracing::warn!("this CPU has AMX, and it is not used: {why}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.cpus)
        .thread_name("http")
        .enable_all()
        .build()
        .context("cannot start the threads for HTTP")?;
    let result = runtime.block_on(serve(config));
    // Without waiting for a name server that does not answer.
    runtime.shutdown_background();
    result
}

async fn serve(config: Serve) -> anyhow::Result<()> {
    let listener = accept::bind(&config.host, config.port).await?;
    let address = listener.local_addr().context("cannot tell the address that is listened on")?;
    let metrics = Arc::new(Metrics::new());
    let names = config.models.iter().map(|spec| (spec.name.as_str(), spec.aliases.as_slice()));
    let models = Models::with_aliases(names);
    let shared = http::Shared::new(Arc::clone(&models), Arc::clone(&metrics), config.http);
    tracing::info!(
        %address,
        cpus = config.cpus,
        workers = config.settings.threads.workers,
        threads_per_worker = config.settings.threads.per_worker,
        "listening"
    );

    let (fatal, died) = oneshot::channel();
    let stop_loading = CancellationToken::new();
    let (loading, loading_ended) = oneshot::channel::<()>();
    let loader = Loader {
        models: Arc::clone(&models),
        metrics: Arc::clone(&metrics),
        pool: Arc::new(Pool::new(config.cpus)?),
        settings: config.settings,
        sources: config.sources,
        runtime: Handle::current(),
        stop: stop_loading.clone(),
    };
    std::thread::Builder::new()
        .name("load".into())
        .spawn(move || {
            if let Err(error) = loader.load_all(config.models) {
                drop(fatal.send(error));
            }
            drop(loading);
        })
        .context("cannot start the thread that loads models")?;

    let (told_to_stop, outcome) = oneshot::channel();
    let stop = async {
        let result = tokio::select! {
            // The channel closes without a word when loading is over.
            Ok(error) = died => Err(error),
            signal = shutdown::requested() => signal.context("cannot listen for signals"),
        };
        if let Ok(signal) = &result {
            tracing::info!(signal, "stopping: no new connections; requests under way finish");
        }
        shared.stop();
        drop(told_to_stop.send(result));
    };
    let settings = accept::Settings {
        max_connections: config.max_connections,
        header_timeout: config.header_timeout,
        shutdown_timeout: config.shutdown_timeout,
    };
    let finished = accept::serve(listener, http::router(Arc::clone(&shared)), settings, metrics, stop).await;
    stop_loading.cancel();
    if tokio::time::timeout(LOADER_PATIENCE, loading_ended).await.is_err() {
        tracing::warn!("stopping while a model is being loaded");
    }
    outcome.await.context("the server stopped without being told to")??;
    if finished {
        // Nobody waits for an answer any more; forwards are short.
        tokio::task::spawn_blocking(move || models.stop()).await.context("stopping the workers")?;
        tracing::info!("stopped");
    } else {
        tracing::warn!("stopped before all requests were finished: the shutdown timeout is over");
    }
    Ok(())
}

struct Loader {
    models: Arc<Models>,
    metrics: Arc<Metrics>,
    pool: Arc<Pool>,
    settings: Settings,
    sources: Sources,
    runtime: Handle,
    /// Cancelled when the server stops.
    stop: CancellationToken,
}

/// Why one model is not in service.
enum Trouble {
    /// Its directory, given by the user, cannot be served.
    Fatal(anyhow::Error),
    /// It could not be fetched; later it may be.
    Passing(String),
    /// What was fetched cannot be served.
    Lasting(String),
    /// The server stops.
    Stopping,
}

impl Loader {
    /// Takes all models into service; those that cannot be fetched are tried again
    /// until they can, or the server stops. An error ends the process.
    fn load_all(&self, mut specs: Vec<Spec>) -> anyhow::Result<()> {
        // One operator at a time, on all CPUs: weights are laid out here.
        model::set_operator_threads(self.settings.threads.workers * self.settings.threads.per_worker);
        loop {
            let mut again = Vec::new();
            for spec in specs {
                match self.load(&spec) {
                    Ok(()) => {}
                    Err(Trouble::Stopping) => return Ok(()),
                    Err(Trouble::Fatal(error)) => return Err(error),
                    Err(Trouble::Lasting(why)) => {
                        tracing::error!(model = spec.name, why, "cannot be served");
                        self.models.set(&spec.name, State::Failed { why });
                    }
                    Err(Trouble::Passing(why)) => {
                        tracing::error!(
                            model = spec.name,
                            why,
                            retry_in_s = RETRY_FETCH.as_secs(),
                            "cannot be fetched"
                        );
                        self.models.set(&spec.name, State::Failed { why });
                        again.push(spec);
                    }
                }
            }
            if again.is_empty() {
                return Ok(());
            }
            // The timer is made inside of the runtime, of which this thread is not.
            let pause = async { tokio::time::sleep(RETRY_FETCH).await };
            if self.runtime.block_on(self.stop.run_until_cancelled(pause)).is_none() {
                return Ok(());
            }
            specs = again;
        }
    }

    fn load(&self, spec: &Spec) -> Result<(), Trouble> {
        let name = spec.name.as_str();
        if self.stop.is_cancelled() {
            return Err(Trouble::Stopping);
        }
        match &spec.origin {
            Origin::Directory(path) => self
                .take_into_service(spec, path, path.display().to_string())
                .map_err(|why| Trouble::Fatal(anyhow::anyhow!("model {name}: {why}"))),
            Origin::Repository(source) => {
                let fetched = self.fetch(name, source)?;
                let origin = format!("{}@{}", fetched.repo, fetched.commit);
                self.take_into_service(spec, &fetched.directory, origin).map_err(Trouble::Lasting)
            }
        }
    }

    fn fetch(&self, name: &str, source: &Source) -> Result<Fetched, Trouble> {
        let models = &self.models;
        let step = |step: String| models.set(name, State::Loading { step });
        step("looking for it in the cache".into());
        let manifest = DefaultModel::manifest(source);
        let passing = |error: fetch::Error| Trouble::Passing(one_line(&error));
        let mut progress = Steps { set: &step, total: 0, files: 0, log: Log::default() };
        let Some(hub) = &self.sources.hub else {
            let finding = fetch::fetch_offline(&self.sources.cache, source, manifest.as_ref(), &mut progress);
            let found = self.runtime.block_on(self.stop.run_until_cancelled(finding));
            return found.ok_or(Trouble::Stopping)?.map_err(passing)?.ok_or_else(|| {
                Trouble::Passing(format!(
                    "{}@{} is not in the cache {}, and --offline (HF_HUB_OFFLINE) forbids to fetch it",
                    source.repo,
                    source.revision(),
                    self.sources.cache.root().display()
                ))
            });
        };
        let fetching = fetch::fetch(&self.sources.cache, source, hub, manifest.as_ref(), &mut progress);
        let fetched =
            self.runtime.block_on(self.stop.run_until_cancelled(fetching)).ok_or(Trouble::Stopping)?;
        fetched.map_err(
            |error| if error.is_lasting() { Trouble::Lasting(one_line(&error)) } else { passing(error) },
        )
    }

    /// Loads and starts a model; why not, on one line, where that fails. A panic in a
    /// library is such a failure: it must not leave the model loading for ever.
    fn take_into_service(&self, spec: &Spec, path: &Path, origin: String) -> Result<(), String> {
        // A model that is half loaded is dropped and never looked at again.
        match catch_unwind(AssertUnwindSafe(|| self.start(spec, path, origin))) {
            Ok(result) => result.map_err(|error| one_line(&error)),
            Err(panic) => Err(format!("{}: loading it failed: {}", path.display(), panic_line(&*panic))),
        }
    }

    fn start(&self, spec: &Spec, path: &Path, origin: String) -> Result<(), LoadError> {
        let name = spec.name.as_str();
        self.models.set(name, State::Loading { step: "reading its files".into() });
        let begun = Instant::now();
        let directory = Directory::read(path)?;
        let loaded = models::load(directory, origin, self.settings.preference, &spec.manner)?;
        let about = loaded.about.clone();
        self.models.serve(name, loaded, &self.settings, &self.pool, &self.metrics)?;
        tracing::info!(
            model = name,
            source = about.source,
            architecture = about.architecture,
            dimensions = about.dimensions,
            max_tokens = about.max_tokens,
            pooling = about.pooling,
            implementation = %about.plan.implementation,
            dtype = %about.plan.dtype,
            kernels = about.plan.kernels.map(tracing::field::display),
            device = %about.plan.device,
            space = %about.space(),
            seconds = begun.elapsed().as_secs_f64(),
            "ready"
        );
        Ok(())
    }
}

/// Tells `/health` and the log how far a download is.
struct Steps<'a> {
    set: &'a (dyn Fn(String) + Sync),
    total: u64,
    files: u64,
    log: Log,
}

impl Progress for Steps<'_> {
    fn resolved(&mut self, commit: &str, files: usize, total_bytes: u64) {
        self.total = total_bytes;
        self.files = files as u64;
        (self.set)(format!("fetching {files} files, {} MB", total_bytes / 1_000_000));
        self.log.resolved(commit, files, total_bytes);
    }

    fn started(&mut self, file: &str, have: u64) {
        (self.set)(format!(
            "fetching {file}, one of {} files, {} MB in all",
            self.files,
            self.total / 1_000_000
        ));
        self.log.started(file, have);
    }

    fn advanced(&mut self, file: &str, have: u64) {
        self.log.advanced(file, have);
    }

    fn converting(&mut self, file: &str, done: u64, total: u64) {
        (self.set)(format!(
            "converting {file} to safetensors, {} of {} MB",
            done / 1_000_000,
            total / 1_000_000
        ));
        self.log.converting(file, done, total);
    }

    fn retrying(&mut self, what: &str, why: &fetch::Error, pause: Duration) {
        (self.set)(format!("fetching {what}, after: {}", one_line(why)));
        self.log.retrying(what, why, pause);
    }

    fn finished(&mut self, fetched: &Fetched) {
        self.log.finished(fetched);
    }
}
