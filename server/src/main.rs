//! The command line of the embedding server; what it does is in the library.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use embedding_server::config::{Cli, Command, Fetch};
use embedding_server::models::one_line;
use embedding_server::{fetch, fetch_command, serve, telemetry};

/// `EX_UNAVAILABLE` of sysexits.h: the hub cannot be reached, so something else may
/// be tried; other failures are not cured by that.
const UNREACHABLE: u8 = 69;

fn main() -> ExitCode {
    match run(Cli::parse_with_default(std::env::args_os())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let unreachable = error.downcast_ref::<fetch::Error>().is_some_and(fetch::Error::is_unreachable);
            eprintln!("error: {}", one_line(&*error));
            if unreachable { ExitCode::from(UNREACHABLE) } else { ExitCode::FAILURE }
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(args) => {
            telemetry::start(&args.logging)?;
            serve::run(args.resolve()?)
        }
        Command::Fetch(args) => {
            telemetry::start(&args.logging)?;
            let config: Fetch = args.resolve()?;
            let summary =
                serde_json::to_string(&fetch_command::run(&config)?).context("writing the summary")?;
            writeln!(std::io::stdout(), "{summary}").context("writing the summary")
        }
    }
}
