//! Where the platform of `make up` listens: the variables that `make env` prints.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use thiserror::Error;

/// The cluster that `make up` makes, unless `KITH_CLUSTER` says otherwise.
const DEFAULT_CLUSTER: &str = "demo";

/// Why the addresses are not known.
#[derive(Debug, Error)]
pub enum EnvError {
    /// `make env` could not be run.
    #[error("make env: {0}")]
    Run(#[from] std::io::Error),
    /// `make env` failed.
    #[error("make env failed ({status}): is the platform up (make up)? {stderr}")]
    Failed {
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A variable is missing.
    #[error("{0} is not set and make env does not print it: is the platform up (make up)?")]
    Missing(&'static str),
}

/// The addresses and files of a running platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env {
    /// The kubeconfig of the local cluster.
    pub kubeconfig: PathBuf,
    /// `http://host:port` of the API, or `https`.
    pub api: String,
    /// `ws://host:port/v1/connect` of the WebSocket, or `wss`.
    pub ws: String,
    /// The authorities that clients trust (PEM), for `https` and `wss`.
    pub ca: Option<PathBuf>,
    /// `host:port` of ImBusiness.
    pub business: String,
    /// The CA that ImBusiness's certificate is verified against.
    pub business_ca: PathBuf,
    /// The business line's client certificate, at ImBusiness and at Kafka.
    pub business_cert: PathBuf,
    /// Its key.
    pub business_key: PathBuf,
    /// Kafka's bootstrap address.
    pub kafka: String,
    /// The ChatCluster's name, prefix of its topics and part of ImBusiness's name in its certificate.
    pub cluster: String,
}

impl Env {
    /// From the environment, else from `make env` in the workspace.
    pub fn load() -> Result<Self, EnvError> {
        let set: BTreeMap<String, String> =
            std::env::vars().filter(|(name, _)| name.starts_with("KITH_") || name == "KUBECONFIG").collect();
        if set.contains_key("KITH_API") {
            return Self::from_map(&set);
        }
        // An exported KUBECONFIG belongs to somebody else: only what `make up` started is used.
        let cluster = set.get("KITH_CLUSTER").cloned();
        let mut printed = make_env(&workspace())?;
        if let Some(cluster) = cluster {
            printed.insert("KITH_CLUSTER".to_owned(), cluster);
        }
        Self::from_map(&printed)
    }

    fn from_map(map: &BTreeMap<String, String>) -> Result<Self, EnvError> {
        let get = |name: &'static str| map.get(name).cloned().ok_or(EnvError::Missing(name));
        Ok(Self {
            kubeconfig: get("KUBECONFIG")?.into(),
            api: get("KITH_API")?.trim_end_matches('/').to_owned(),
            ws: get("KITH_WS")?,
            ca: map.get("KITH_CA").map(PathBuf::from),
            business: get("KITH_BUSINESS")?,
            business_ca: get("KITH_BUSINESS_CA")?.into(),
            business_cert: get("KITH_BUSINESS_CERT")?.into(),
            business_key: get("KITH_BUSINESS_KEY")?.into(),
            kafka: get("KITH_KAFKA")?,
            cluster: map.get("KITH_CLUSTER").cloned().unwrap_or_else(|| DEFAULT_CLUSTER.to_owned()),
        })
    }
}

/// The workspace that this crate was built in.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The cache folder of the local tools: `KITH_CACHE`, else `~/.cache/kith`.
pub fn cache() -> PathBuf {
    std::env::var_os("KITH_CACHE").map_or_else(
        || std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default().join(".cache/kith"),
        PathBuf::from,
    )
}

fn make_env(workspace: &Path) -> Result<BTreeMap<String, String>, EnvError> {
    let output = Command::new("make").args(["-s", "env"]).current_dir(workspace).output()?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(EnvError::Failed { status: output.status, stderr });
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads shell assignments: `NAME=value`, `export NAME='value'`.
fn parse(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("export ").unwrap_or(line.trim()).split_once('='))
        .map(|(name, value)| (name.trim().to_owned(), unquote(value.trim().trim_end_matches(';')).to_owned()))
        .collect()
}

fn unquote(value: &str) -> &str {
    for quote in ['\'', '"'] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote)) {
            return inner;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_assignments_are_read_with_and_without_quotes() {
        let map = parse(
            "export KITH_API='http://127.0.0.1:30080'\nKITH_WS=\"ws://127.0.0.1:30081/v1/connect\";\nKITH_KAFKA=127.0.0.1:30094\n",
        );
        assert_eq!(map["KITH_API"], "http://127.0.0.1:30080");
        assert_eq!(map["KITH_WS"], "ws://127.0.0.1:30081/v1/connect");
        assert_eq!(map["KITH_KAFKA"], "127.0.0.1:30094");
        assert!(Env::from_map(&map).unwrap_err().to_string().contains("KUBECONFIG"));
    }
}
