//! How far a download is: a bar on a terminal, lines in the log elsewhere.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// A line at the latest after this time...
const LOG_EVERY: Duration = Duration::from_secs(10);
/// ... or this share, in percent.
const LOG_STEP: u64 = 10;

/// The progress of all files of a model together.
pub(super) struct Progress {
    model: String,
    total: u64,
    done: u64,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Log { at: Instant, percent: u64 },
}

impl Progress {
    /// `total` in bytes.
    pub(super) fn new(model: &str, total: u64) -> Self {
        let shown = if io::stderr().is_terminal() {
            let style = "{wide_msg} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(style).expect("the template is sound");
            Shown::Bar(ProgressBar::new(total).with_style(style.progress_chars("=> ")))
        } else {
            Shown::Log { at: Instant::now(), percent: 0 }
        };
        Self { model: model.into(), total, done: 0, shown }
    }

    /// A file begins.
    pub(super) fn file(&self, name: &str) {
        if let Shown::Bar(bar) = &self.shown {
            bar.set_message(format!("{} {name}", self.model));
        }
    }

    /// This many bytes are here, of all.
    pub(super) fn set(&mut self, done: u64) {
        self.done = done;
        match &mut self.shown {
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Log { at, percent } => {
                let now = (100 * done).checked_div(self.total).unwrap_or(100);
                if now >= *percent + LOG_STEP || at.elapsed() >= LOG_EVERY {
                    (*at, *percent) = (Instant::now(), now - now % LOG_STEP);
                    let (done, total) = (HumanBytes(done), HumanBytes(self.total));
                    tracing::info!("downloading {}: {done} of {total}, {now}%", self.model);
                }
            }
        }
    }

    /// Bytes that are here, of all.
    pub(super) fn done(&self) -> u64 {
        self.done
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}
