//! `kubectl` as a platform team types it, for what people see: tables, explanations, refusals in words.

use std::{process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command};

use super::{Cluster, ClusterError};
use crate::env::cache;

/// One command.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a command said.
#[derive(Debug, Clone)]
pub struct Output {
    /// Whether it succeeded.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Cluster {
    /// Runs `kubectl` in the sample's namespace.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<Output, ClusterError> {
        self.kubectl_with(arguments, None).await
    }

    /// Applies a manifest; the output tells whether it was taken.
    pub async fn apply(&self, manifest: &str, arguments: &[&str]) -> Result<Output, ClusterError> {
        let mut all = vec!["apply", "-f", "-"];
        all.extend_from_slice(arguments);
        self.kubectl_with(&all, Some(manifest)).await
    }

    async fn kubectl_with(&self, arguments: &[&str], input: Option<&str>) -> Result<Output, ClusterError> {
        let mut command = Command::new(cache().join("bin/kubectl"));
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        if !arguments.iter().any(|a| matches!(*a, "-n" | "--namespace" | "-A")) {
            command.args(["-n", &self.namespace]);
        }
        let mut child = command
            .args(arguments)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(text.as_bytes()).await?;
        }
        let output = tokio::time::timeout(DEADLINE, child.wait_with_output())
            .await
            .map_err(|_| ClusterError::Missing(format!("kubectl {arguments:?} did not end")))??;
        Ok(Output {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
