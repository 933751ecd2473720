//! Graceful shutdown: one token that every part watches, set by SIGTERM or SIGINT.

use tokio::signal::unix::{SignalKind, signal};
pub use tokio_util::sync::CancellationToken;

/// A token that is cancelled when the process is asked to end. A second signal ends it at once.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let cancelled = token.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if cancelled.is_cancelled() {
                tracing::warn!("asked to end a second time: leaving without draining");
                std::process::exit(130);
            }
            tracing::info!("asked to end: draining");
            cancelled.cancel();
        }
    });
    Ok(token)
}
