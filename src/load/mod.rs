//! A load like Meilisearch's, on any embedding server, and what came of it.
//!
//! Meilisearch indexes with 40 requests in flight, of 10 inputs each, pretty-printed JSON over a new connection
//! each, and people search meanwhile. [`run`] does the same: connections that ask again as soon as they are
//! answered ([`Plan::bulk`]), and single texts at a fixed pace beside them ([`Plan::search`]), which do not wait for
//! one another, so that a slow answer does not thin the traffic out; their time runs from when they were due.
//!
//! Unlike Meilisearch it never asks again after a failure: a failure is counted, its time is not, and the connection
//! pauses for 100 ms, so that a server that refuses at once is not hammered. Requests under way when the time is
//! over are waited for, and the rate is what was answered until the last answer.

mod answer;
mod client;
mod inputs;
mod process;
mod report;
mod tally;
mod template;
mod traffic;

pub use client::{Failure, Form, Lane, Peer, Target, ask, http_client, http_client_trusting};
pub use inputs::{Inputs, Length, Picture};
pub use process::Memory;
pub use report::{Lanes, Report};
pub use tally::{Errors, LaneReport};
pub use template::{Template, TemplateError};
pub use traffic::{Plan, Until, run};

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The template does not fit the plan.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A form takes other inputs than the lane has.
    #[error("searches are texts, and {0} takes pictures")]
    SearchForm(&'static str),
    /// The server's process cannot be looked at.
    #[error("cannot read {path}: {source}; is it a process of this machine that still runs?")]
    Process {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
}
