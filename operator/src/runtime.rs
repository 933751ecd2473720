//! The tasks that live as long as a ChatCluster: connections to its engine, the prober, the watcher of its event log.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use kith_kit::{
    config::{Tls, Valkey},
    valkey::{Connector, ValkeyError},
};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    chatcluster::{Departures, Shortage, Told},
    context::Wake,
    dataplane::{
        self, Gate, Links, Prober,
        readiness::Readiness,
        types::{Desired, HandOver, Problem},
    },
    eventlog::EventLog,
    lease::LeaseGuard,
    pki::{Leaf, users},
    survey::Survey,
};

/// How the operator logs in to an engine.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// PEM of the ChatCluster's CA.
    pub ca_pem: String,
    /// The operator's client certificate.
    pub leaf: Leaf,
    /// The password of the user `operator`.
    pub password: String,
}

/// Why the tasks of a ChatCluster could not be started.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// The private folder cannot be written.
    #[error("the operator's private folder {path}: {source}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The login is not usable.
    #[error(transparent)]
    Login(#[from] ValkeyError),
}

/// What the data plane was in the last pass, for the StorageShards' status.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// How every shard is.
    pub readiness: Readiness,
    /// What stands in the way.
    pub problems: Vec<Problem>,
    /// Shards that own no slot and hold no key.
    pub empty: Vec<String>,
    /// Replicas that certainly hold each acknowledged write, by shard.
    pub acknowledged_by: BTreeMap<String, u32>,
    /// Pods that may hold acknowledged writes, by shard.
    pub copies: BTreeMap<String, Vec<String>>,
    /// Shards whose StatefulSet may take surplus pods away.
    pub shrinkable: Vec<String>,
    /// Planned changes of primary, by shard.
    pub hand_overs: BTreeMap<String, HandOver>,
}

/// The tasks of one ChatCluster.
pub struct Runtime {
    /// Connections to the engine.
    pub links: Links,
    /// Keeps slot moves and changes of primary apart.
    pub gate: Gate,
    /// The watcher of the event log.
    pub event_log: EventLog,
    /// What services and consumers say of themselves.
    pub survey: Survey,
    desired: watch::Sender<Arc<Desired>>,
    prober: watch::Receiver<dataplane::Report>,
    snapshot: Mutex<Option<Arc<Snapshot>>>,
    told: Mutex<BTreeMap<String, Told>>,
    /// Since when shards have too few replicas.
    pub shortage: Mutex<Shortage>,
    /// Pods that were taken away and still count.
    pub departures: Mutex<Departures>,
    login: Mutex<Login>,
    dir: PathBuf,
    cancel: CancellationToken,
}

impl Runtime {
    /// Tells the prober what should be.
    pub fn desire(&self, desired: &Arc<Desired>) {
        self.desired.send_if_modified(|current| {
            let differs = current != desired;
            if differs {
                *current = desired.clone();
            }
            differs
        });
    }

    /// What should be, as the last pass said.
    pub fn wanted(&self) -> Arc<Desired> {
        self.desired.borrow().clone()
    }

    /// What the prober last found.
    pub fn prober(&self) -> dataplane::Report {
        self.prober.borrow().clone()
    }

    /// Keeps what this pass saw.
    pub fn remember(&self, snapshot: Snapshot) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(snapshot));
    }

    /// What the last pass saw.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps what StorageShards are told; answers those for which it is news.
    pub fn tell(&self, told: BTreeMap<String, Told>) -> Vec<String> {
        let mut before = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let news = told.iter().filter(|(shard, told)| before.get(*shard) != Some(*told));
        let news = news.map(|(shard, _)| shard.clone()).collect();
        *before = told;
        news
    }

    fn renew(&self, login: &Login) -> Result<(), RuntimeError> {
        let mut current = self.login.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != *login {
            write_login(&self.dir, login)?;
            *current = login.clone();
        }
        Ok(())
    }
}

/// All ChatClusters by `namespace/name` and UID.
pub struct Clusters {
    dir: PathBuf,
    guard: LeaseGuard,
    wake: Wake,
    shutdown: CancellationToken,
    running: Mutex<HashMap<String, (String, Arc<Runtime>)>>,
    /// By UID, those that somebody still holds: a mover whose ChatCluster's tasks were started anew must not run into their promotions.
    gates: Mutex<HashMap<String, Gate>>,
}

/// Which ChatCluster.
pub struct Identity<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// UID of the object.
    pub uid: &'a str,
    /// `spec.clusterName`.
    pub cluster_name: &'a str,
}

impl Clusters {
    /// None running.
    pub fn new(dir: PathBuf, guard: LeaseGuard, wake: Wake, shutdown: CancellationToken) -> Self {
        Self { dir, guard, wake, shutdown, running: Mutex::default(), gates: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (String, Arc<Runtime>)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tasks of this ChatCluster, if they run.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Runtime>> {
        self.lock().get(&format!("{namespace}/{name}")).map(|(_, runtime)| runtime.clone())
    }

    /// The tasks of this ChatCluster with this login; started when they do not run.
    pub fn ensure(
        &self,
        who: &Identity<'_>,
        login: &Login,
        desired: &Arc<Desired>,
    ) -> Result<Arc<Runtime>, RuntimeError> {
        let key = format!("{}/{}", who.namespace, who.name);
        let running = self.lock().get(&key).cloned();
        if let Some((uid, runtime)) = running {
            if uid == who.uid {
                runtime.renew(login)?;
                return Ok(runtime);
            }
            self.stop(who.namespace, who.name);
        }
        let runtime = Arc::new(self.start(who, login, desired)?);
        self.lock().insert(key, (who.uid.to_owned(), runtime.clone()));
        Ok(runtime)
    }

    /// Ends the tasks of a ChatCluster that is gone or going; its login is wiped.
    pub fn stop(&self, namespace: &str, name: &str) {
        if let Some((_, runtime)) = self.lock().remove(&format!("{namespace}/{name}")) {
            runtime.cancel.cancel();
            if let Err(error) = std::fs::remove_dir_all(&runtime.dir) {
                tracing::warn!(path = %runtime.dir.display(), %error, "the login of a deleted ChatCluster could not be removed");
            }
        }
    }

    /// Ends the tasks of ChatClusters for which `alive` says no.
    pub fn keep(&self, alive: impl Fn(&str, &str) -> bool) {
        let all: Vec<String> = self.lock().keys().cloned().collect();
        for (namespace, name) in all.iter().filter_map(|key| key.split_once('/')) {
            if !alive(namespace, name) {
                tracing::info!(namespace, name, "the ChatCluster is gone: its tasks end");
                self.stop(namespace, name);
            }
        }
    }

    fn start(&self, who: &Identity<'_>, login: &Login, desired: &Arc<Desired>) -> Result<Runtime, RuntimeError> {
        let dir = self.dir.join(who.uid);
        write_login(&dir, login)?;
        let valkey = Valkey {
            seeds: Vec::new(),
            username: Some(users::OPERATOR.to_owned()),
            password_file: Some(dir.join("password")),
            tls: true,
        };
        let connector = Connector::with_parts(&valkey, Some(&Tls::in_dir(&dir)), who.cluster_name)?;
        let links = Links::new(connector);
        let cancel = self.shutdown.child_token();
        let gate = self.gate(who.uid);
        let (desired_tx, desired_rx) = watch::channel(desired.clone());
        let prober =
            Prober { links: links.clone(), guard: self.guard.clone(), desired: desired_rx, gate: gate.clone() };
        let prober = prober.start(cancel.clone());
        self.forward(who, prober.clone(), cancel.clone());
        let (wake, namespace, name) = (self.wake.clone(), who.namespace.to_owned(), who.name.to_owned());
        let event_log = EventLog::start(move || wake.cluster(&namespace, &name), cancel.clone());
        Ok(Runtime {
            links,
            gate,
            event_log,
            survey: Survey::start(cancel.clone()),
            desired: desired_tx,
            prober,
            snapshot: Mutex::default(),
            told: Mutex::default(),
            shortage: Mutex::default(),
            departures: Mutex::default(),
            login: Mutex::new(login.clone()),
            dir,
            cancel,
        })
    }

    /// The one gate of a ChatCluster.
    fn gate(&self, uid: &str) -> Gate {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|_, gate| gate.is_shared());
        gates.entry(uid.to_owned()).or_default().clone()
    }

    /// Every change of what the prober says leads to a pass.
    fn forward(&self, who: &Identity<'_>, mut report: watch::Receiver<dataplane::Report>, cancel: CancellationToken) {
        let (wake, namespace, name) = (self.wake.clone(), who.namespace.to_owned(), who.name.to_owned());
        tokio::spawn(async move {
            while let Some(Ok(())) = cancel.run_until_cancelled(report.changed()).await {
                wake.cluster(&namespace, &name);
            }
        });
    }
}

fn write_login(dir: &Path, login: &Login) -> Result<(), RuntimeError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RuntimeError::File { path, source }
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir))?;
    let files = [
        ("ca.crt", &login.ca_pem),
        ("tls.crt", &login.leaf.cert_pem),
        ("tls.key", &login.leaf.key_pem),
        ("password", &login.password),
    ];
    for (name, text) in files {
        // Renamed into place, so that no reader ever sees half a file.
        let (path, fresh) = (dir.join(name), dir.join(format!(".{name}")));
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&fresh).map_err(failed(&fresh))?;
        file.write_all(text.as_bytes()).map_err(failed(&fresh))?;
        std::fs::rename(&fresh, &path).map_err(failed(&path))?;
    }
    Ok(())
}
