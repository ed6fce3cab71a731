//! The engine as the server runs it, without HTTP: tokenizer threads, queue, batcher
//! and workers, with the server's own defaults. Its environment variables
//! (`EMBEDDING_MAX_BATCH_TOKENS` …) change them here too.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use embedding_server::config::{Cli, Command, Serve};
use embedding_server::embedder::Embedder;
use embedding_server::metrics::Metrics;
use embedding_server::model::{self, Directory};
use embedding_server::models::{self, Manner, Models, Origin, Spec};
use embedding_server::tokenize::{Encode, How, Pool};
use tokio::runtime::Runtime;

use super::corpus::Class;
use super::{Contestant, LeftOut, Run};

/// What the server would do with these options.
pub(crate) fn config(options: &[&str]) -> anyhow::Result<Serve> {
    let arguments = ["embedding-server", "serve"].iter().chain(options).map(Into::into);
    match Cli::parse_with_default(arguments).command {
        Command::Serve(arguments) => Ok(arguments.resolve()?),
        _ => bail!("serve was asked for"),
    }
}

/// The directory of the model that the server would serve; it must be there already.
pub(crate) fn model_directory() -> anyhow::Result<PathBuf> {
    let Serve { models, sources, .. } = config(&[])?;
    let [Spec { origin, .. }] = models.as_slice() else { bail!("EMBEDDING_MODEL must name one model") };
    match origin {
        Origin::Directory(path) => Ok(path.clone()),
        Origin::Repository(source) => {
            let found = sources.cache.find(source)?;
            found.with_context(|| format!("{} is not in the cache: run `make model`", source.repo))
        }
    }
}

/// The engine with one model.
pub(crate) struct Ours {
    name: String,
    dtype: String,
    runtime: Arc<Runtime>,
    models: Arc<Models>,
    embedder: Arc<Embedder>,
    tokenizer: Arc<dyn Encode>,
}

impl Ours {
    /// Loads the model and starts its workers. `options` are the server's.
    pub(crate) fn start(runtime: &Arc<Runtime>, options: &[&str]) -> anyhow::Result<Self> {
        const ID: &str = "bench";
        let Serve { settings, cpus, .. } = config(options)?;
        let path = model_directory()?;
        let loaded =
            models::load(Directory::read(&path)?, String::new(), settings.preference, &Manner::default())?;
        let plan = loaded.about.plan;
        let tokenizer = Arc::clone(&loaded.tokenizer);
        let models = Models::new([ID]);
        let pool = Arc::new(Pool::new(cpus)?);
        models.serve(
            &models.slot(ID).context("just made")?,
            loaded,
            &settings,
            &pool,
            &Arc::new(Metrics::new()),
        )?;
        let embedder = models.get(Some(ID))?.embedder;
        let name = format!(
            "{} {} ({} × {})",
            plan.implementation, plan.dtype, settings.threads.workers, settings.threads.per_worker
        );
        let dtype = plan.dtype.to_string();
        Ok(Self { name, dtype, runtime: Arc::clone(runtime), models, embedder, tokenizer })
    }

    /// The same; `Err` inside if it is left out, as the machine or the model lacks what these
    /// options ask for.
    pub(crate) fn if_possible(
        runtime: &Arc<Runtime>,
        options: &[&str],
    ) -> anyhow::Result<Result<Self, LeftOut>> {
        match Self::start(runtime, options) {
            Ok(ours) => Ok(Ok(ours)),
            Err(error) => match error.downcast_ref::<models::LoadError>() {
                Some(models::LoadError::Model(why @ model::Error::Unavailable(_))) => {
                    Ok(Err(LeftOut::new(options.join(" "), why.to_string())))
                }
                _ => Err(error),
            },
        }
    }

    /// The number of tokens of each text, special tokens included.
    pub(crate) fn token_counts(&self, texts: &[String]) -> anyhow::Result<Vec<usize>> {
        texts.iter().map(|text| Ok(self.tokenizer.encode(text, &How::default())?.len())).collect()
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.models.stop();
    }
}

impl Contestant for Ours {
    fn name(&self) -> &str {
        &self.name
    }

    fn dtype(&self) -> &str {
        &self.dtype
    }

    fn ours(&self) -> bool {
        true
    }

    fn embed(&mut self, class: &Class, per_call: usize) -> anyhow::Result<Run> {
        let mut run = Run::default();
        for texts in class.texts.chunks(per_call) {
            let texts = texts.to_vec();
            let begun = Instant::now();
            let embedded = self.runtime.block_on(self.embedder.embed_texts(texts))?;
            run.calls.push(begun.elapsed().as_secs_f64());
            run.vectors.extend(embedded.vectors);
        }
        Ok(run)
    }
}
