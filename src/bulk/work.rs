//! One line of the list to one row of a table, with as many attempts as it is worth.

use std::time::Duration;

use tokio::{sync::watch, time::sleep};

use super::line::Line;
use crate::{
    cache::{CachedVector, FailedItem, Source, TableItem},
    domain::{Content, EmbedError, ItemErrorKind},
    embedder::{Embedder, KeptError},
};

/// What stands in the table for a line that cannot be read.
const INVALID_LINE: &str = "invalid_line";
/// The pause before the second attempt, doubled before each further one; up to a quarter of it more or less.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// What became of a line.
pub(super) enum Outcome {
    /// It has its row.
    Done(TableItem),
    /// There was no time for a further attempt.
    Unfinished,
    /// The device is gone, for whatever reason.
    DeviceLost(String),
}

/// Embeds a line. A picture whose host fails, and whatever is our own fault, is tried up to `retries` times again, until
/// `stopping` says so.
pub(super) async fn work(
    embedder: &Embedder,
    line: Line,
    retries: u32,
    mut stopping: watch::Receiver<bool>,
) -> Outcome {
    let Line { number, id, image, content, .. } = line;
    let done = |outcome| Outcome::Done(TableItem { id, line: number, image, outcome });
    let content = match content {
        Ok(content) => content,
        Err(reason) => return done(Err(FailedItem::now(Source::Image, INVALID_LINE, reason))),
    };
    let source = match &content {
        Content::Text(_) => Source::Text,
        Content::Image(picture) => Source::of_picture(picture),
    };
    let mut attempts = 0;
    let (kind, message) = loop {
        let failed = match embedder.kept(content.clone()).await {
            // Found in a cache, it came from elsewhere.
            Ok((key, vector)) => {
                return done(Ok((key, CachedVector { source, ..vector })));
            }
            Err(KeptError::Work(EmbedError::Unavailable(reason))) => return Outcome::DeviceLost(reason),
            Err(KeptError::Work(error)) => (ItemErrorKind::Internal, error.to_string()),
            Err(KeptError::Item { kind, message }) => (kind, message),
        };
        let may_pass = failed.0.is_transient() || failed.0 == ItemErrorKind::Internal;
        if !may_pass || attempts == retries {
            break failed;
        }
        tokio::select! {
            () = sleep(pause(attempts)) => attempts += 1,
            _ = stopping.wait_for(|stopping| *stopping) => return Outcome::Unfinished,
        }
    };
    done(Err(FailedItem::now(source, kind.as_str(), message)))
}

/// The pause after so many further attempts.
fn pause(attempts: u32) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1 << attempts.min(10)).min(MAX_PAUSE);
    longest.mul_f64(0.75 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit() {
        for (attempts, seconds) in [(0, 1.0), (1, 2.0), (4, 16.0), (5, 30.0), (40, 30.0)] {
            let found = pause(attempts).as_secs_f64();
            assert!((seconds * 0.75..=seconds * 1.25).contains(&found), "{attempts}: {found}");
        }
    }
}
