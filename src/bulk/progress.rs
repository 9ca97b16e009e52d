//! How far a run is: a bar on a terminal, a line in the log now and then elsewhere.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::list::Position;

/// Between two lines of the log.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// The bar counts thousandths.
const BAR_LENGTH: u64 = 1000;

/// The progress of a run.
pub(super) struct Progress {
    started: Instant,
    position: Position,
    /// The share of the list that earlier runs have done.
    begun_at: Option<f64>,
    bar: Option<ProgressBar>,
    n_items: u64,
    n_failed: u64,
}

impl Progress {
    pub fn new(position: Position) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let (bar, style) = match position.total {
                Some(_) => (ProgressBar::new(BAR_LENGTH), "[{bar:24}] {percent}% {wide_msg}"),
                None => (ProgressBar::no_length(), "{wide_msg}"),
            };
            let style = ProgressStyle::with_template(style).expect("the template is sound");
            bar.with_style(style.progress_chars("=> "))
        });
        Self { started: Instant::now(), position, begun_at: None, bar, n_items: 0, n_failed: 0 }
    }

    /// The work begins only now.
    pub fn restart(&mut self) {
        self.started = Instant::now();
    }

    /// One more item is done.
    pub fn item(&mut self, has_failed: bool) {
        self.begun_at = self.begun_at.or_else(|| self.position.share());
        self.n_items += 1;
        self.n_failed += u64::from(has_failed);
        if let Some(bar) = &self.bar {
            let share = self.position.share().unwrap_or(0.0);
            bar.set_position((share * BAR_LENGTH as f64) as u64);
            bar.set_message(self.describe());
        }
    }

    /// Says how far it is, where there is no bar.
    pub fn log(&self) {
        if self.bar.is_none() {
            let percent = self.position.share().map(|share| format!(", {:.1}% of the list", 100.0 * share));
            tracing::info!("{}{}", self.describe(), percent.unwrap_or_default());
        }
    }

    /// How long the run takes so far.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Items a second.
    fn rate(&self) -> f64 {
        self.n_items as f64 / self.seconds().max(f64::MIN_POSITIVE)
    }

    fn describe(&self) -> String {
        let left = self.left().map(|left| format!(", {} left", humantime::format_duration(left)));
        let Self { n_items, n_failed, .. } = self;
        format!("{n_items} items, {:.1} a second, {n_failed} failed{}", self.rate(), left.unwrap_or_default())
    }

    /// What is left, at the speed so far.
    fn left(&self) -> Option<Duration> {
        let (share, begun_at) = (self.position.share()?, self.begun_at?);
        let seconds = self.seconds() * (1.0 - share) / (share - begun_at);
        (seconds.is_finite() && seconds >= 0.0).then(|| Duration::from_secs(seconds as u64))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
