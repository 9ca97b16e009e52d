//! The memory of the server's process, as Linux tells it.

use std::fs;

use serde::Serialize;

use super::LoadError;

/// The memory of a process before and after the load, in MiB. What is missing could not be read any more.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    /// Resident at the start.
    pub start_mib: f64,
    /// Resident at the end.
    pub end_mib: Option<f64>,
    /// The most that was ever resident.
    pub peak_mib: Option<f64>,
}

impl Memory {
    /// Looks at the process before the load.
    ///
    /// # Errors
    /// [`LoadError::Process`].
    pub(super) fn at_start(pid: u32) -> Result<Self, LoadError> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path);
        let start_mib = status.and_then(|status| {
            field(&status, "VmRSS").ok_or_else(|| std::io::Error::other("it has no line VmRSS"))
        });
        match start_mib {
            Ok(start_mib) => Ok(Self { start_mib, end_mib: None, peak_mib: None }),
            Err(source) => Err(LoadError::Process { path, source }),
        }
    }

    /// Looks again after it; the process may have ended.
    pub(super) fn at_end(self, pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        Self { end_mib: field(&status, "VmRSS"), peak_mib: field(&status, "VmHWM"), ..self }
    }
}

/// A line such as `VmRSS:     1234 kB`, in MiB.
fn field(status: &str, name: &str) -> Option<f64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: f64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let status = "Name:\tx\nVmHWM:\t  204800 kB\nVmRSS:\t  102400 kB\n";
        assert_eq!(field(status, "VmRSS"), Some(100.0));
        assert_eq!(field(status, "VmHWM"), Some(200.0));
        assert_eq!(field(status, "Vm"), None);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        let error = Memory::at_start(u32::MAX).unwrap_err().to_string();
        assert!(error.starts_with("cannot read /proc/4294967295/status: "), "{error}");
    }
}
