//! How the process ends: the first signal asks, the second one insists, and nothing runs behind its back.

use std::{
    future::{Future, pending},
    io::{self, Write},
    mem::MaybeUninit,
    ptr,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

/// What a shell reports for a process that was told twice: 128 + SIGINT.
const EXIT_INSISTED: u8 = 130;
const HANGUP: &str = "SIGHUP";

/// Starts listening for SIGTERM, SIGINT and SIGHUP; the returned future ends at the first of them.
///
/// From this call on none ends the process by itself. After the future has ended, or once it is dropped since the
/// service ends anyway, SIGTERM or SIGINT exits at once, whatever is still queued. Must be called inside a tokio runtime.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn requested() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // What `nohup` has ignored stays so.
    let mut hangup = if is_ignored(libc::SIGHUP) { None } else { Some(signal(SignalKind::hangup())?) };
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let (ask, asked) = oneshot::channel();
    tokio::spawn(async move {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        let mut name = tokio::select! {
            name = next() => name,
            // The terminal was closed. Never a second signal: its shell sends one, and the system another.
            _ = hung_up => HANGUP,
        };
        if ask.send(name).is_ok() || name == HANGUP {
            name = next().await;
        }
        tracing::warn!("{name} while ending: exiting with requests unanswered");
        exit(EXIT_INSISTED);
    });
    Ok(async move {
        match asked.await {
            Ok(name) => {
                tracing::info!(
                    "{name}: accepting no more, finishing what is queued; a second signal exits at once"
                );
            }
            // The runtime ends, and with it whoever waits here.
            Err(_) => pending().await,
        }
    })
}

/// Whether this process was started to ignore `signal`.
fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: Without a new action it only writes the present one, of which zeros are a valid one too.
    unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Ends the process with `status`, as it is: threads may still load a model or compute with libtorch, under whose feet
/// the destructors of a usual exit would take it apart.
pub fn exit(status: u8) -> ! {
    // Nobody is left to be told where this fails.
    let _ = io::stdout().flush();
    // SAFETY: It runs nothing of ours, and does not return.
    unsafe { libc::_exit(status.into()) }
}
