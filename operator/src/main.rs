//! The command line of the operator; what it does is in the library.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use embedding_operator::config::Cli;
use embedding_operator::{run, telemetry};

fn main() -> ExitCode {
    let cli = Cli::from_environment();
    let result = telemetry::start(&cli.log, cli.log_format).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        runtime.block_on(run::run(Arc::new(cli)))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}
