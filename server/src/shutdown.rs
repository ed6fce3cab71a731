//! When to stop.

use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGTERM (Kubernetes, docker stop) or SIGINT (Ctrl-C); returns its name.
pub async fn requested() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
