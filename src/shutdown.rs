//! The signals that end the service: the first one asks, the second one insists.

use std::{future::Future, io, process};

use tokio::signal::unix::{SignalKind, signal};

/// What a shell reports for a process that was told twice: 128 + SIGINT.
const EXIT_INSISTED: i32 = 130;

/// Starts listening for SIGTERM and SIGINT; the returned future ends at the first of them.
///
/// From this call on neither ends the process by itself. After the future has ended, a second signal
/// exits at once, whatever is still queued.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn requested() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    Ok(async move {
        let name = next().await;
        tracing::info!("{name}: accepting no more, finishing what is queued; a second signal exits at once");
        tokio::spawn(async move {
            let name = next().await;
            tracing::warn!("{name} again: exiting with requests unanswered");
            process::exit(EXIT_INSISTED);
        });
    })
}
