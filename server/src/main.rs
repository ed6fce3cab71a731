//! The command line of the embedding server; what it does is in the library.

use std::io::Write;

use anyhow::Context;
use embedding_server::config::{Cli, Command, ConvertArgs, FetchArgs, InspectArgs};
use embedding_server::{convert_command, fetch_command, healthcheck, inspect_command, serve, telemetry};
use serde::Serialize;

fn main() -> ! {
    let code = match run(Cli::parse_with_default(std::env::args_os())) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}", fetch_command::failure(&error));
            fetch_command::exit_code(&error)
        }
    };
    leave(code)
}

/// Ends the process without the destructors of C++'s globals: a thread may still compute
/// (a request that did not finish in time, a model that is being loaded), and would crash
/// when `LibTorch`'s are gone.
#[expect(unsafe_code, reason = "the standard library has no way to end a process without destructors")]
fn leave(code: i32) -> ! {
    // What cannot be written now cannot be told to anybody either.
    drop(std::io::stdout().flush());
    // SAFETY: _exit takes any number and touches no memory; standard error has no buffer.
    unsafe { libc::_exit(code) }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(args) => {
            telemetry::start(&args.logging)?;
            serve::run(args.resolve()?)
        }
        Command::Fetch(args) => {
            let summary_file = args.summary_file.clone();
            fetch_command::tell(summary_file.as_deref(), fetch(*args))
        }
        Command::Convert(args) => convert(args),
        Command::Inspect(args) => inspect(*args),
        Command::Healthcheck(args) => Ok(healthcheck::run(&args.resolve()?)?),
    }
}

fn fetch(args: FetchArgs) -> anyhow::Result<String> {
    telemetry::start(&args.logging)?;
    print(&fetch_command::run(&args.resolve()?)?)
}

fn convert(args: ConvertArgs) -> anyhow::Result<()> {
    telemetry::start(&args.logging)?;
    print(&convert_command::run(&args.resolve())?).map(drop)
}

fn inspect(args: InspectArgs) -> anyhow::Result<()> {
    telemetry::start(&args.logging)?;
    let config = args.resolve()?;
    let facts = inspect_command::run(&config)?;
    if config.json {
        return print(&facts).map(drop);
    }
    write!(std::io::stdout(), "{facts}").context("writing the facts")
}

/// Prints one line of JSON, and gives it back.
fn print(summary: &impl Serialize) -> anyhow::Result<String> {
    let summary = serde_json::to_string(summary).context("writing the summary")?;
    writeln!(std::io::stdout(), "{summary}").context("writing the summary")?;
    Ok(summary)
}
