//! A child process that ends with its owner.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::TestError;

/// How much of a log an error shows.
const LOG_TAIL_BYTES: usize = 2_000;

/// A running child; killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in the file `log`, which grows over restarts.
    pub fn spawn(name: impl Into<String>, mut command: Command, log: &Path) -> Result<Self, TestError> {
        let name = name.into();
        let open = || {
            std::fs::File::options()
                .create(true)
                .append(true)
                .open(log)
                .map_err(TestError::io(log.display().to_string()))
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .spawn()
            .map_err(TestError::io(format!("starting {name} ({})", command.get_program().to_string_lossy())))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn signal(&self, signal: Signal) -> Result<(), TestError> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).map_err(|e| TestError::io(format!("signalling {}", self.name))(e.into()))
    }

    /// SIGKILL, then waits for the end.
    pub fn kill(&mut self) -> Result<(), TestError> {
        self.child.kill().map_err(TestError::io(format!("killing {}", self.name)))?;
        self.child.wait().map_err(TestError::io(format!("reaping {}", self.name)))?;
        Ok(())
    }

    /// SIGTERM, then SIGKILL if it has not ended after `grace`.
    pub async fn stop(&mut self, grace: Duration) -> Result<(), TestError> {
        if self.is_running() {
            self.signal(Signal::TERM)?;
            let end = Instant::now() + grace;
            while self.is_running() && Instant::now() < end {
                tokio::time::sleep(super::POLL).await;
            }
        }
        if self.is_running() { self.kill() } else { Ok(()) }
    }

    /// SIGSTOP: it sleeps until [`Process::resume`].
    pub fn pause(&self) -> Result<(), TestError> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<(), TestError> {
        self.signal(Signal::CONT)
    }

    /// The end of what it has written.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
    }

    /// A timeout that shows the log.
    pub(super) fn too_long(&self, what: impl Into<String>) -> TestError {
        TestError::Timeout { what: what.into(), log: self.log_tail() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the process has ended, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
