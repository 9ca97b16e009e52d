//! Descriptors: connections, downloads and files take one each.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Takes as many as the process may have. What it is started with, 1024 as a rule, is meant for programs that still call
/// `select`, and where none is left no caller is heard.
pub(super) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, limit = limit.current, "the limit on open files stays as it was");
    }
}
