//! The real program on a machine of its own, as far as models by name are concerned.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use tempfile::TempDir;

use super::{COMMIT, sidelens};

/// The program with a cache of its own, and no other hub than the stand-in.
pub struct Machine {
    /// Holds the cache.
    pub home: TempDir,
    endpoint: String,
}

impl Machine {
    /// A machine with an empty cache.
    pub fn new(endpoint: String) -> Self {
        Self { home: tempfile::tempdir().expect("a directory"), endpoint }
    }

    /// The program, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = sidelens(args);
        for (name, _) in std::env::vars_os() {
            let upper = name.to_string_lossy().to_uppercase();
            if upper.starts_with("HF_") || upper.starts_with("HUGGINGFACE_") || upper.ends_with("_PROXY") {
                command.env_remove(name);
            }
        }
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", &self.endpoint);
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("runs")
    }

    /// Downloads `demo/clip`; gives the directory printed.
    pub fn download(&self) -> PathBuf {
        directory(&self.run(&["download", "demo/clip"]))
    }

    /// The model's part of the cache.
    pub fn folder(&self) -> PathBuf {
        self.home.path().join("hub/models--demo--clip")
    }

    /// Where the model is to be.
    pub fn snapshot(&self) -> PathBuf {
        self.folder().join("snapshots").join(COMMIT)
    }

    /// The names in `blobs` that end so.
    pub fn blobs(&self, ending: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.folder().join("blobs")) else { return Vec::new() };
        let paths = entries.map(|entry| entry.expect("readable").path());
        paths.filter(|path| path.to_string_lossy().ends_with(ending)).collect()
    }
}

/// The one line that a download prints.
pub fn directory(output: &Output) -> PathBuf {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end().into()
}

/// The last line of a command that failed as a command should.
pub fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    text.lines().last().expect("a reason").to_owned()
}
