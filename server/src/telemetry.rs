//! Logs, to standard error.
//!
//! What is embedded is in no log, at no level and with no filter. This program's own
//! events do not have it. Its dependencies' can: h2 logs the headers that it cannot
//! parse, tokenizers every character that it replaces, and what another logs may change with
//! its version. So no filter lets through what they say below the level of info,
//! `OUTBOUND` apart; nor is it logged what a thread panicked with.

use std::panic::PanicHookInfo;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogArgs, LogFormat};

/// Dependencies that only see what goes to and comes from a hub: what they say helps to
/// find out why a model cannot be fetched.
const OUTBOUND: [&str; 4] = ["reqwest", "hyper_rustls", "hyper_util::client", "rustls"];

/// Starts logging. Twice is an error, which only a test could make.
pub fn start(args: &LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log)
        .map_err(|error| anyhow::anyhow!("--log (RUST_LOG) {}: {error}", args.log))?;
    // Not as more directives of `filter`: the user's win over them by being more exact.
    let subscriber = tracing_subscriber::registry().with(filter).with(filter_fn(holds_no_inputs));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let started = match args.log_format {
        LogFormat::Text => {
            subscriber.with(layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))).try_init()
        }
        LogFormat::Json => subscriber.with(layer.json().flatten_event(true)).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging cannot be started: {error}"))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn holds_no_inputs(metadata: &Metadata<'_>) -> bool {
    let is_of = |name: &str| {
        metadata.target().strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    *metadata.level() <= Level::INFO || is_of(env!("CARGO_CRATE_NAME")) || OUTBOUND.into_iter().any(is_of)
}

/// Says where a thread panicked, and not with what: the standard library quotes the
/// string that is sliced wrongly.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let location = panic.location().map(ToString::to_string);
    tracing::error!(thread = thread.name(), location, "a thread panicked");
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_is_logged_with_its_place_and_without_what_it_quotes() {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::registry()
            .with(tracing_subscriber::fmt::layer().json().with_writer(move || writer.clone()));
        let thread = std::thread::Builder::new().name("slicing".into());
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(log_panic));
        let panicked = thread
            .spawn(move || {
                let input = "xyzzySécretInput".to_owned();
                tracing::subscriber::with_default(subscriber, || input[..7].len())
            })
            .unwrap()
            .join();
        std::panic::set_hook(before);
        // What the hook would have told is in the payload.
        let payload = panicked.unwrap_err();
        assert!(payload.downcast_ref::<String>().unwrap().contains("xyzzyS"));
        let log = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        for said in ["a thread panicked", "slicing", "telemetry.rs:", "ERROR"] {
            assert!(log.contains(said), "{log}");
        }
        assert!(!log.contains("xyzzyS"), "{log}");
    }
}
