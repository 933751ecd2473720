//! Which instances of a service are ready: a DNS name, a fixed list or a file, watched for changes.

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Between two looks at DNS or the file.
const POLL: Duration = Duration::from_millis(500);
/// A look that takes longer counts as failed.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(3);

/// The ready instances as `host:port`, sorted.
pub type Endpoints = Arc<Vec<String>>;

/// An endpoints string that cannot be read.
#[derive(Debug, Error)]
#[error("endpoints {0:?}: use dns:<host>:<port>, static:<host:port>,… or file:<path>")]
pub struct SpecError(String);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Dns { host: String, port: u16 },
    Static(Vec<String>),
    File(PathBuf),
}

fn parse(spec: &str) -> Result<Source, SpecError> {
    let bad = || SpecError(spec.to_owned());
    match spec.split_once(':').ok_or_else(bad)? {
        ("dns", rest) => {
            let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
            let port = port.parse().map_err(|_| bad())?;
            if host.is_empty() { Err(bad()) } else { Ok(Source::Dns { host: host.to_owned(), port }) }
        }
        ("static", rest) => {
            let list: Vec<String> = rest.split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect();
            if list.is_empty() { Err(bad()) } else { Ok(Source::Static(list)) }
        }
        ("file", path) if !path.is_empty() => Ok(Source::File(path.into())),
        _ => Err(bad()),
    }
}

impl Source {
    async fn look(&self) -> std::io::Result<Vec<String>> {
        match self {
            Self::Static(list) => Ok(list.clone()),
            Self::File(path) => {
                let text = tokio::fs::read_to_string(path).await?;
                Ok(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect())
            }
            Self::Dns { host, port } => {
                match tokio::time::timeout(LOOKUP_DEADLINE, tokio::net::lookup_host((host.as_str(), *port))).await {
                    Ok(found) => Ok(found?.map(|a| a.to_string()).collect()),
                    Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "DNS did not answer")),
                }
            }
        }
    }
}

/// A watched set of endpoints.
#[derive(Clone)]
pub struct Discovery {
    endpoints: watch::Receiver<Endpoints>,
    /// Those that are listed and do not answer; nobody asks unless told to (see [`crate::pulse`]).
    silent: watch::Receiver<Arc<HashSet<String>>>,
    again: Arc<Notify>,
}

impl Discovery {
    /// Starts watching. A look that fails keeps what was known: losing DNS must not lose the platform.
    pub fn start(spec: &str, shutdown: CancellationToken) -> Result<Self, SpecError> {
        let source = parse(spec)?;
        let (publish, endpoints) = watch::channel(Endpoints::default());
        let again = Arc::new(Notify::new());
        let asked = again.clone();
        let spec = spec.to_owned();
        tokio::spawn(async move {
            loop {
                match source.look().await {
                    Ok(mut found) => {
                        found.sort_unstable();
                        found.dedup();
                        publish.send_if_modified(|current| {
                            let changed = **current != found;
                            if changed {
                                tracing::info!(%spec, endpoints = ?found, "endpoints changed");
                                *current = Arc::new(found);
                            }
                            changed
                        });
                    }
                    Err(error) => {
                        tracing::debug!(%spec, %error, "endpoints could not be looked up; keeping the last ones");
                    }
                }
                if matches!(source, Source::Static(_)) {
                    shutdown.cancelled().await;
                }
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = asked.notified() => {}
                    () = tokio::time::sleep(POLL) => {}
                }
            }
        });
        Ok(Self { endpoints, silent: watch::channel(Arc::default()).1, again })
    }

    /// What never changes: these are listed, and of them these do not answer.
    pub fn fixed(listed: &[&str], silent: &[&str]) -> Self {
        let answering = listed.iter().filter(|n| !silent.contains(n)).map(ToString::to_string).collect();
        let silent = silent.iter().map(ToString::to_string).collect();
        Self {
            endpoints: watch::channel(Arc::new(answering)).1,
            silent: watch::channel(Arc::new(silent)).1,
            again: Arc::default(),
        }
    }

    /// The same with another view of who is there.
    pub(crate) fn with(
        &self,
        endpoints: watch::Receiver<Endpoints>,
        silent: watch::Receiver<Arc<HashSet<String>>>,
    ) -> Self {
        Self { endpoints, silent, again: self.again.clone() }
    }

    /// The endpoints as last seen.
    pub fn current(&self) -> Endpoints {
        self.endpoints.borrow().clone()
    }

    /// Whether an instance is listed but has not answered for some seconds.
    pub fn is_silent(&self, address: &str) -> bool {
        self.silent.borrow().contains(address)
    }

    /// A receiver that sees every change.
    pub fn watch(&self) -> watch::Receiver<Endpoints> {
        self.endpoints.clone()
    }

    /// Looks again at once, for a caller that met a dead endpoint.
    pub fn look_again(&self) {
        self.again.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_spec_is_refused_in_words() {
        for bad in ["", "dns:", "dns:host", "dns::1", "static:", "file:", "http://x"] {
            assert!(parse(bad).unwrap_err().to_string().contains("dns:<host>:<port>"), "{bad}");
        }
        assert_eq!(parse("dns:a.b.svc:7443").unwrap(), Source::Dns { host: "a.b.svc".to_owned(), port: 7443 });
    }

    #[tokio::test]
    async fn a_changed_file_changes_the_endpoints() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endpoints");
        std::fs::write(&path, "b:1\na:1\n").unwrap();
        let end = CancellationToken::new();
        let discovery = Discovery::start(&format!("file:{}", path.display()), end.clone()).unwrap();
        let mut watch = discovery.watch();
        watch.wait_for(|e| **e == ["a:1", "b:1"]).await.unwrap();
        std::fs::write(&path, "c:1\n").unwrap();
        discovery.look_again();
        watch.wait_for(|e| **e == ["c:1"]).await.unwrap();
        end.cancel();
    }
}
