//! The real program.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
};

/// The program, without the settings that the environment of the tests may hold.
pub fn sidelens(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidelens"));
    for (variable, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SIDELENS_"))
    {
        command.env_remove(variable);
    }
    command.args(args);
    command
}

/// What a service within the tests has decoded in a process of its own.
pub fn decode_worker() -> Command {
    sidelens(&["decode-worker"])
}

/// A serving program; killed when dropped.
pub struct Running {
    child: Child,
    /// Where it serves, from its own words.
    pub url: String,
}

impl Running {
    /// Starts it on a free port and waits for the line that names the port.
    pub fn start(args: &[&str]) -> Self {
        let mut command = sidelens(&["serve"]);
        command.args(args);
        Self::start_command(command)
    }

    /// The same of a `serve` command whose surroundings are prepared already.
    pub fn start_command(mut command: Command) -> Self {
        let command = command.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let url =
            line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("`{line}` names no address"));
        Self { child, url: url.to_string() }
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        self.child.wait().expect("it was not waited for before")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails where it has ended already, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
