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
use crate::memory;
use crate::metrics::Metrics;
use crate::model::memory::Memory;
use crate::model::weights::Weights;
use crate::model::{self, Directory};
use crate::models::{self, Added, LoadError, Models, Origin, Settings, Slot, Spec, State, one_line};
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
    model::Plan::decide(preference, model::Machine::for_choice(preference))?;
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
    let added = config.allow_model_changes.then(|| models.allow_changes());
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
            if let Err(error) = loader.run(config.models, added) {
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

/// A model to be loaded.
struct Task {
    slot: Slot,
    spec: Spec,
    /// Whether the server was started with it.
    is_needed: bool,
}

/// Why one model is not in service.
enum Trouble {
    /// Its directory, given by the user who started the server, cannot be served.
    Fatal(anyhow::Error),
    /// It could not be fetched; later it may be.
    Passing(String),
    /// What was fetched cannot be served.
    Lasting(String),
    /// It was unloaded meanwhile.
    Unwanted,
    /// The server stops.
    Stopping,
}

impl Loader {
    /// Takes models into service, those of the command line and then those that are added. Those that cannot be
    /// fetched are tried again until they can, or the server stops. An error ends the process.
    fn run(&self, specs: Vec<Spec>, mut added: Option<Added>) -> anyhow::Result<()> {
        // One operator at a time, on all CPUs: weights are laid out here.
        model::set_operator_threads(self.settings.threads.workers * self.settings.threads.per_worker);
        let needed = |spec: Spec| {
            let slot = self.models.slot(&spec.name)?;
            Some(Task { slot, spec, is_needed: true })
        };
        let mut tasks: Vec<_> = specs.into_iter().filter_map(needed).collect();
        // What could not be fetched, and when it is to be tried again.
        let (mut again, mut retry_at) = (Vec::new(), Instant::now());
        loop {
            for task in tasks {
                let name = &task.spec.name;
                match self.load(&task) {
                    Ok(()) | Err(Trouble::Unwanted) => {}
                    Err(_) if task.slot.unwanted().is_cancelled() && !self.stop.is_cancelled() => {}
                    Err(Trouble::Stopping) => return Ok(()),
                    Err(Trouble::Fatal(error)) => return Err(error),
                    Err(Trouble::Lasting(why)) => {
                        tracing::error!(model = name, why, "cannot be served");
                        self.models.set(&task.slot, State::Failed { why });
                    }
                    Err(Trouble::Passing(why)) => {
                        let retry_in_s = RETRY_FETCH.as_secs();
                        tracing::error!(model = name, why, retry_in_s, "cannot be fetched");
                        self.models.set(&task.slot, State::Failed { why });
                        again.push(task);
                        retry_at = Instant::now() + RETRY_FETCH;
                    }
                }
            }
            if let Some((resident, limit)) = memory::resident().zip(memory::limit()) {
                tracing::info!(resident_mib = resident >> 20, limit_mib = limit >> 20, "memory");
            }
            let Some(next) = self.next(&mut again, retry_at, added.as_mut()) else { return Ok(()) };
            tasks = next;
        }
    }

    /// Waits for a model that is added, or until those are to be tried `again`, which then are taken. Nothing: there is
    /// no more to do.
    fn next(&self, again: &mut Vec<Task>, retry_at: Instant, added: Option<&mut Added>) -> Option<Vec<Task>> {
        if again.is_empty() && added.is_none() {
            return None;
        }
        let more = async {
            match added {
                Some(added) => added.recv().await,
                None => std::future::pending().await,
            }
        };
        let is_again = !again.is_empty();
        // The timer is made inside of the runtime, of which this thread is not.
        let next = async {
            tokio::select! {
                more = more => {
                    let (slot, spec) = more?;
                    Some(vec![Task { slot, spec, is_needed: false }])
                }
                () = tokio::time::sleep_until(retry_at.into()), if is_again => Some(std::mem::take(again)),
            }
        };
        self.runtime.block_on(self.stop.run_until_cancelled(next))?
    }

    fn load(&self, task: &Task) -> Result<(), Trouble> {
        let name = task.spec.name.as_str();
        match &task.spec.origin {
            Origin::Directory(path) => {
                self.while_wanted(task, std::future::ready(()))?;
                let taken = self.take_into_service(task, path, path.display().to_string());
                taken.map_err(|why| {
                    if task.is_needed {
                        Trouble::Fatal(anyhow::anyhow!("model {name}: {why}"))
                    } else {
                        Trouble::Lasting(why)
                    }
                })
            }
            Origin::Repository(source) => {
                let fetched = self.fetch(task, source)?;
                let origin = format!("{}@{}", fetched.repo, fetched.commit);
                self.take_into_service(task, &fetched.directory, origin).map_err(Trouble::Lasting)
            }
        }
    }

    /// Does something, unless the model is unloaded or the server stops first.
    fn while_wanted<T>(&self, task: &Task, future: impl Future<Output = T>) -> Result<T, Trouble> {
        let wanted =
            async { task.slot.unwanted().run_until_cancelled(future).await.ok_or(Trouble::Unwanted) };
        self.runtime.block_on(self.stop.run_until_cancelled(wanted)).ok_or(Trouble::Stopping)?
    }

    fn fetch(&self, task: &Task, source: &Source) -> Result<Fetched, Trouble> {
        let step = |step: String| self.models.set(&task.slot, State::Loading { step });
        step("looking for it in the cache".into());
        let manifest = DefaultModel::manifest(source);
        let passing = |error: fetch::Error| Trouble::Passing(one_line(&error));
        let mut progress = Steps { set: &step, total: 0, files: 0, log: Log::default() };
        let Some(hub) = &self.sources.hub else {
            let finding = fetch::fetch_offline(&self.sources.cache, source, manifest.as_ref(), &mut progress);
            return self.while_wanted(task, finding)?.map_err(passing)?.ok_or_else(|| {
                Trouble::Passing(format!(
                    "{}@{} is not in the cache {}, and --offline (HF_HUB_OFFLINE) forbids to fetch it",
                    source.repo,
                    source.revision(),
                    self.sources.cache.root().display()
                ))
            });
        };
        let fetching = fetch::fetch(&self.sources.cache, source, hub, manifest.as_ref(), &mut progress);
        self.while_wanted(task, fetching)?.map_err(|error| {
            if error.is_lasting() { Trouble::Lasting(one_line(&error)) } else { passing(error) }
        })
    }

    /// Loads and starts a model; why not, on one line, where that fails. A panic in a
    /// library is such a failure: it must not leave the model loading for ever.
    fn take_into_service(&self, task: &Task, path: &Path, origin: String) -> Result<(), String> {
        // A model that is half loaded is dropped and never looked at again.
        match catch_unwind(AssertUnwindSafe(|| self.start(task, path, origin))) {
            Ok(result) => result.map_err(|error| one_line(&error)),
            Err(panic) => Err(format!("{}: loading it failed: {}", path.display(), panic_line(&*panic))),
        }
    }

    /// Tells what the model will take, before it does: a process that is killed for its memory tells nothing.
    fn tell_memory(&self, spec: &Spec, directory: &Directory) -> Result<(), model::Error> {
        let preference = self.settings.preference;
        let plan = model::Plan::decide(preference, model::Machine::for_choice(preference))?;
        let needed = Memory::estimate(directory, plan);
        let needed_mib = needed.of_process() >> 20;
        tracing::info!(model = spec.name, needed_mib, "loading");
        let room = memory::limit().zip(memory::private()).map(|(limit, taken)| limit.saturating_sub(taken));
        if let Some(room) = room.filter(|&room| needed.of_process() > room) {
            tracing::warn!(
                model = spec.name,
                needed_mib,
                room_mib = room >> 20,
                "it may not fit: raise the memory limit, or serve fewer or smaller models"
            );
        }
        Ok(())
    }

    fn start(&self, task: &Task, path: &Path, origin: String) -> Result<(), LoadError> {
        let Task { slot, spec, .. } = task;
        self.models.set(slot, State::Loading { step: "reading its files".into() });
        let (begun, before) = (Instant::now(), memory::private());
        let directory = Directory::read(path)?;
        self.tell_memory(spec, &directory)?;
        let loaded = models::load(directory, origin, self.settings.preference, &spec.manner)?;
        let about = loaded.about.clone();
        if slot.unwanted().is_cancelled()
            || !self.models.serve(slot, loaded, &self.settings, &self.pool, &self.metrics)?
        {
            tracing::info!(model = spec.name, "unloaded while it was loaded");
            return Ok(());
        }
        let memory = memory::private().zip(before).map(|(now, before)| now.saturating_sub(before));
        tracing::info!(
            model = spec.name,
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
            memory_mib = memory.map(|bytes| bytes >> 20),
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
