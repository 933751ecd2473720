//! `kubectl` and `helm` as a platform team types them, for what people see: tables, explanations, refusals in words.

use std::{process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command};

use super::{Cluster, ClusterError};
use crate::env::cache;

/// One command.
const DEADLINE: Duration = Duration::from_secs(60);
/// An installation or its end, with everything that is waited for.
const HELM_DEADLINE: Duration = Duration::from_secs(300);

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

    /// Runs `helm` on the local cluster.
    pub async fn helm(&self, arguments: &[&str]) -> Result<Output, ClusterError> {
        let mut command = Command::new(cache().join("bin/helm"));
        for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(folder, cache().join("helm"));
        }
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        ended(&mut command, None, HELM_DEADLINE).await
    }

    async fn kubectl_with(&self, arguments: &[&str], input: Option<&str>) -> Result<Output, ClusterError> {
        let mut command = Command::new(cache().join("bin/kubectl"));
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        if !arguments.iter().any(|a| matches!(*a, "-n" | "--namespace" | "-A")) {
            command.args(["-n", &self.namespace]);
        }
        ended(command.args(arguments), input, DEADLINE).await
    }
}

/// What the command said once it has ended.
async fn ended(command: &mut Command, input: Option<&str>, deadline: Duration) -> Result<Output, ClusterError> {
    let mut child = command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes()).await?;
    }
    let output = tokio::time::timeout(deadline, child.wait_with_output())
        .await
        .map_err(|_| ClusterError::Missing(format!("{command:?} did not end")))??;
    Ok(Output {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
