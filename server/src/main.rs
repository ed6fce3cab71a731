//! The command line of the embedding server; what it does is in the library.

use std::io::Write;

use anyhow::Context;
use embedding_server::config::{Cli, Command, Fetch};
use embedding_server::models::one_line;
use embedding_server::{fetch, fetch_command, serve, telemetry};

/// `EX_UNAVAILABLE` of sysexits.h: the hub cannot be reached, so something else may
/// be tried; other failures are not cured by that.
const UNREACHABLE: i32 = 69;

fn main() -> ! {
    let code = match run(Cli::parse_with_default(std::env::args_os())) {
        Ok(()) => 0,
        Err(error) => {
            let unreachable = error.downcast_ref::<fetch::Error>().is_some_and(fetch::Error::is_unreachable);
            eprintln!("error: {}", one_line(&*error));
            if unreachable { UNREACHABLE } else { 1 }
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
            telemetry::start(&args.logging)?;
            let config: Fetch = args.resolve()?;
            let summary =
                serde_json::to_string(&fetch_command::run(&config)?).context("writing the summary")?;
            writeln!(std::io::stdout(), "{summary}").context("writing the summary")
        }
    }
}
