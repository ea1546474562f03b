//! A program that ends with its test.

use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running program. Killed when dropped.
pub struct Process {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Process {
    /// Starts a program whose output goes to a log.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        command.stdin(Stdio::null()).stdout(log.reopen().unwrap());
        Self::spawn(command, log)
    }

    /// Starts a program that is talked to by its standard input and output; only its errors go to the log.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_interactive(command: &mut Command) -> (Self, ChildStdin, ChildStdout) {
        let log = tempfile::NamedTempFile::new().unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Self::spawn(command, log);
        let (input, output) = (process.child.stdin.take().unwrap(), process.child.stdout.take().unwrap());
        (process, input, output)
    }

    fn spawn(command: &mut Command, log: tempfile::NamedTempFile) -> Self {
        let child =
            command.stderr(log.reopen().unwrap()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log }
    }

    /// What it wrote to its log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log.path()).unwrap_or_default()).into_owned()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Stops it where it stands: connections stay open, nothing answers.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Ends it without a goodbye.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status().unwrap();
        assert!(sent.success(), "kill -{name} failed");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
