//! One service process: its ports, its configuration file, its log, and what the kernel says about it.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use kith_kit::config::Config;
use kith_platform::Service;
use kith_testing::{Process, TestError, free_port};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{LocalError, file};

/// A look at an admin port.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// A service process that may run.
pub struct Instance {
    /// What it runs.
    pub service: Service,
    /// Which of its kind.
    pub index: usize,
    /// Where it serves.
    pub listen: SocketAddr,
    /// Its admin port.
    pub admin: SocketAddr,
    /// Whether others are told to call it.
    pub(super) published: bool,
    config: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.service.name(), self.index)
    }
}

impl Instance {
    /// Writes the configuration and takes two ports.
    pub(super) fn new(service: Service, index: usize, config: &Config, dir: &Path) -> Result<Self, LocalError> {
        let path = dir.join(format!("{}-{index}.json", service.name()));
        let text = serde_json::to_vec_pretty(config).map_err(|e| file(&path)(e.into()))?;
        std::fs::write(&path, text).map_err(file(&path))?;
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Self {
            service,
            index,
            listen: local(free_port()),
            admin: local(free_port()),
            published: true,
            config: path,
            log: dir.join(format!("{}-{index}.log", service.name())),
            process: None,
        })
    }

    /// Starts the process.
    pub(super) fn spawn(&mut self, filter: &str) -> Result<(), TestError> {
        let mut command = Command::new(binary());
        command
            .arg(self.service.name())
            .arg("--config")
            .arg(&self.config)
            .arg("--listen")
            .arg(self.listen.to_string())
            .arg("--admin")
            .arg(self.admin.to_string())
            .env("POD_IP", "127.0.0.1")
            .env("RUST_LOG", filter);
        self.process = Some(Process::spawn(self.to_string(), command, &self.log)?);
        Ok(())
    }

    /// Runs another command of the service binary with this instance's configuration, to its end.
    pub async fn run(&self, command: &str, arguments: &[&str]) -> std::io::Result<Output> {
        let mut command_line = tokio::process::Command::new(binary());
        command_line.arg(command).arg("--config").arg(&self.config).args(arguments).kill_on_drop(true);
        command_line.output().await
    }

    pub(super) fn process_mut(&mut self) -> &mut Option<Process> {
        &mut self.process
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    pub(super) fn kill(&mut self) -> Result<(), TestError> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    pub(super) async fn stop(&mut self, grace: Duration) -> Result<(), LocalError> {
        match self.process.take() {
            Some(mut process) => Ok(process.stop(grace).await?),
            None => Ok(()),
        }
    }

    pub(super) fn freeze(&self) -> Result<(), TestError> {
        self.process.as_ref().map_or(Ok(()), Process::pause)
    }

    pub(super) fn thaw(&self) -> Result<(), TestError> {
        self.process.as_ref().map_or(Ok(()), Process::resume)
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// One of its metrics, the sum over its labels; none when it does not answer.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = get(self.admin, "/metrics").await.ok()?;
        let mut sum = None;
        for line in text.lines().filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))) {
            *sum.get_or_insert(0.0) += line.rsplit(' ').next()?.parse::<f64>().ok()?;
        }
        sum
    }
}

/// The service binary: `KITH_BINARY`, else beside the binary that runs.
pub(super) fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("KITH_BINARY") {
        return path.into();
    }
    let mut dir = std::env::current_exe().unwrap_or_default();
    dir.pop();
    // Test binaries lie one folder deeper.
    if dir.ends_with("deps") {
        dir.pop();
    }
    dir.join("kith")
}

/// Whether the process behind an admin port says that it is ready.
pub(super) async fn ready(admin: SocketAddr) -> Result<(), String> {
    get(admin, "/readyz").await.map(drop)
}

/// A plain request; the answer's body when its status is 200.
async fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let request = async {
        let mut socket = TcpStream::connect(address).await?;
        socket
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(PROBE_DEADLINE, request)
        .await
        .map_err(|_| "no answer".to_owned())?
        .map_err(|e| e.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.starts_with("HTTP/1.1 200") { Ok(body.to_owned()) } else { Err(body.trim().to_owned()) }
}

/// CPU time that a process has used.
pub(crate) fn cpu_of(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the command in parentheses, which may hold spaces: utime and stime are the 12th and 13th, in ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

/// Resident memory of a process.
pub(super) fn memory_of(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}
