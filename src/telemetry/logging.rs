//! Structured logs by `tracing`, to stderr: stdout belongs to what commands print.

use std::io::{self, IsTerminal};

use tracing_subscriber::{
    EnvFilter, Layer, filter::LevelFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

use super::traces::{self, Traces};
use crate::config::{LogConfig, LogFormat};

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// Neither a level nor a filter.
    #[error(
        "`log.level` is `{level}`: {reason}; use off, error, warn, info, debug, trace, or a filter such as \
             `info,sidelens::fetch=debug`"
    )]
    Filter {
        /// What the setting says.
        level: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Starts logging for the whole process, and tracing where there are `traces`; later calls check their filter and change
/// nothing.
///
/// In both shapes a line carries the fields of the spans around it, among them the `id` that the answer carries too, and
/// the `trace_id` if there is one.
///
/// # Errors
/// [`LoggingError::Filter`] when `log.level` cannot be read.
pub fn init(config: &LogConfig, traces: Option<&Traces>) -> Result<(), LoggingError> {
    let wrong = |reason| LoggingError::Filter { level: config.level.clone(), reason };
    let directives: Vec<_> = config.level.split(',').map(str::trim).collect();
    // To the filter any other word is a target, and the only one: what is misspelt would turn every other line off.
    let is_read =
        |word: &&&str| word.contains('=') || !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    if let Some(word) = directives.iter().find(|word| !is_read(word)) {
        return Err(wrong(format!("`{word}` is no level")));
    }
    let filter =
        EnvFilter::builder().parse(directives.join(",")).map_err(|source| wrong(source.to_string()))?;
    // However much is logged, what is traced is not; nor what the hub's client says, as it names signed addresses. What it
    // fails with is told without it.
    let filter = [traces::TARGET, "hf_hub"].into_iter().fold(filter, |filter, target| {
        filter.add_directive(format!("{target}=off").parse().expect("a target and a level"))
    });
    let lines = fmt::layer().with_writer(io::stderr);
    let lines = match config.format {
        LogFormat::Pretty => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    let registry = tracing_subscriber::registry().with(lines.with_filter(filter));
    // A second subscriber is refused: tests start several services in one process. A layer that may be `None` would have
    // every disabled span and event asked for each time.
    let _already_set = match traces {
        Some(traces) => registry.with(traces.layer()).try_init(),
        None => registry.try_init(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_bad_filter_and_may_be_called_twice() {
        let config = |level: &str| LogConfig { format: LogFormat::Pretty, level: level.into() };
        let message = init(&config("sidelens=loud"), None).unwrap_err().to_string();
        assert!(message.starts_with("`log.level` is `sidelens=loud`: "), "{message}");
        // Each is the name of a target to the filter, which would log nothing else.
        for word in ["warning", "verbose", "infos", "warn,infos", "", "warn,"] {
            let message = init(&config(word), None).unwrap_err().to_string();
            assert!(message.starts_with(&format!("`log.level` is `{word}`: ")), "{message}");
        }
        for level in ["warn, sidelens::fetch=debug", "INFO,[embed{id=a}]=trace", "off"] {
            init(&config(level), None).unwrap();
        }
    }
}
