//! The figures, as a table for people and as JSON for scripts.

use std::fmt;

use serde::Serialize;

use super::{LaneReport, Memory};

/// What came of a load.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where the bulk went.
    pub url: String,
    /// What the bulk was: `image` or `text`.
    pub modality: &'static str,
    /// Bulk requests in flight.
    pub n_connections: usize,
    /// Inputs of a bulk request.
    pub n_inputs: usize,
    /// Distinct inputs, where they came again and again.
    pub repeat: Option<u64>,
    /// From the first bulk request to the last good answer.
    pub seconds: Option<f64>,
    /// Bulk inputs answered a second, over `seconds`.
    pub inputs_per_second: f64,
    /// Components of a vector.
    pub dimensions: Option<usize>,
    /// By lane.
    pub lanes: Lanes,
    /// Of the server's process, if it was named.
    pub memory: Option<Memory>,
}

/// The lanes; those that were not used are `None`.
#[derive(Debug, Clone, Serialize)]
pub struct Lanes {
    /// Every repeated input once, before anything is measured.
    pub warm_up: Option<LaneReport>,
    /// Single texts, one after another, on the idle server.
    pub idle_text: Option<LaneReport>,
    /// Single pictures, one after another, on the idle server.
    pub idle_image: Option<LaneReport>,
    /// What is indexed.
    pub bulk: LaneReport,
    /// Single texts beside the bulk.
    pub search: Option<LaneReport>,
}

impl Lanes {
    fn named(&self) -> impl Iterator<Item = (&'static str, &LaneReport)> {
        let Self { warm_up, idle_text, idle_image, bulk, search } = self;
        [
            ("warm-up", warm_up.as_ref()),
            ("idle text", idle_text.as_ref()),
            ("idle image", idle_image.as_ref()),
            ("bulk", Some(bulk)),
            ("search", search.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, lane)| Some((name, lane?)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { url, modality, n_connections, n_inputs, .. } = self;
        write!(f, "{url}: {n_connections} connections of {n_inputs} {modality}s")?;
        match self.repeat {
            Some(n) => writeln!(f, ", {n} distinct ones over and over")?,
            None => writeln!(f, ", each of them new")?,
        }
        write!(
            f,
            "{:.1} {modality}s a second over {:.1} s",
            self.inputs_per_second,
            self.seconds.unwrap_or(0.0)
        )?;
        match self.dimensions {
            Some(n) => writeln!(f, ", vectors of {n}\n")?,
            None => writeln!(f, ", no vector\n")?,
        }
        writeln!(
            f,
            "{:<10} {:>8} {:>11} {:>11} {:>11} {:>11}  errors",
            "lane", "answers", "p50 ms", "p95 ms", "p99 ms", "max ms"
        )?;
        for (name, lane) in self.lanes.named() {
            write!(f, "{name:<10} {:>8}", lane.n)?;
            for latency in [lane.p50_ms, lane.p95_ms, lane.p99_ms, lane.max_ms] {
                match latency {
                    Some(ms) => write!(f, " {ms:>11.2}")?,
                    None => write!(f, " {:>11}", "-")?,
                }
            }
            writeln!(f, "  {}", lane.errors.values().map(|errors| errors.n).sum::<u64>())?;
        }
        for (name, lane) in self.lanes.named() {
            for (kind, errors) in &lane.errors {
                writeln!(f, "{name}: {} x {kind}, the first: {}", errors.n, errors.first)?;
            }
        }
        if let Some(memory) = &self.memory {
            let mib = |value: Option<f64>| value.map_or("unknown".into(), |mib| format!("{mib:.0} MiB"));
            writeln!(
                f,
                "memory of the server: {} at the start, {} at the end, {} at most",
                mib(Some(memory.start_mib)),
                mib(memory.end_mib),
                mib(memory.peak_mib)
            )?;
        }
        Ok(())
    }
}
