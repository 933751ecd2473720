//! The event log of a ChatCluster, managed or external: the topics exist as they must be and carry the ChatCluster's UID, and who may do
//! what at managed brokers is as the table says.
//!
//! One task per ChatCluster looks at once, then every two minutes while all is well and with growing pauses while it is not. A pass of the
//! controller only reads the last outcome: an unreachable Kafka never holds up the rest.

mod acls;
mod admin;
pub mod rights;
mod settings;
mod sight;

#[cfg(test)]
pub(crate) use sight::tests::seen;
pub use sight::{Partition, Sight};

pub(crate) use admin::client_config;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kith_crds::conditions::reason;
use kith_kit::backoff::Backoff;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::rights::Right;
use crate::panics;

/// Between two looks while all is well.
const LOOK_AGAIN: Duration = Duration::from_secs(120);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Which brokers, how to log in there, and what must be there.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// `host:port`, comma-separated.
    pub bootstrap: String,
    /// TLS and login.
    pub security: Security,
    /// `spec.clusterName`: the prefix of the topics.
    pub cluster_name: String,
    /// The UID that the data carries.
    pub uid: String,
    /// K.
    pub partitions: u32,
    /// Copies of each topic.
    pub replication: u32,
    /// Copies that must hold an event.
    pub min_insync: u32,
    /// Retention of events, milliseconds.
    pub retention_ms: u64,
    /// Brokers that the operator runs; 0: they are somebody else's, and not looked at one by one.
    pub brokers: u32,
    /// Who may do what; none for brokers of somebody else, whose rights are their owner's.
    pub rights: Option<BTreeSet<Right>>,
}

#[cfg(test)]
impl Target {
    /// Of the tests: one copy of everything, at brokers of somebody else that speak plain text.
    pub(crate) fn plain(bootstrap: String) -> Self {
        Self {
            bootstrap,
            security: Security::default(),
            cluster_name: "demo".to_owned(),
            uid: "uid-1".to_owned(),
            partitions: 4,
            replication: 1,
            min_insync: 1,
            retention_ms: 1_000,
            brokers: 0,
            rights: None,
        }
    }
}

/// How to talk to the brokers; never logged.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// Whether the brokers speak TLS.
    pub tls: bool,
    /// PEM of the authorities that sign the brokers' certificates; absent: the system's.
    pub ca_pem: Option<String>,
    /// PEM of the client certificate and its key.
    pub client: Option<(String, String)>,
    /// Mechanism, user name, password.
    pub sasl: Option<(String, String, String)>,
}

/// What is the matter with the event log, for the condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// A word of `kith_crds::conditions::reason`.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
}

/// What the last look found; `None` before the first one ended.
pub type Outcome = Option<Result<(), Trouble>>;

/// The task that watches one ChatCluster's event log.
pub struct EventLog {
    target: watch::Sender<Option<Arc<Target>>>,
    outcome: watch::Receiver<Outcome>,
    sight: watch::Receiver<Option<Arc<Sight>>>,
    settings: watch::Receiver<Option<Trouble>>,
}

impl EventLog {
    /// Starts the task; it waits for a target. `changed` is called whenever the outcome changes, or what is seen of managed brokers.
    pub fn start(changed: impl Fn() + Send + Sync + 'static, shutdown: CancellationToken) -> Self {
        let (target, mut targets) = watch::channel(None::<Arc<Target>>);
        let (publish, outcome) = watch::channel(None);
        let (publish_sight, sight) = watch::channel(None);
        let changed = Arc::new(changed);
        let tell = changed.clone();
        tokio::spawn(sight::follow(targets.clone(), publish_sight, move || tell(), shutdown.clone()));
        let (publish_settings, settings) = watch::channel(None);
        tokio::spawn(async move {
            let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
            loop {
                let target = targets.borrow_and_update().clone();
                let pause = match target {
                    None => LOOK_AGAIN,
                    Some(target) => {
                        let found = look_at_all(&target).await;
                        let pause = match &found {
                            Ok(()) => {
                                backoff.reset();
                                LOOK_AGAIN
                            }
                            Err(_) => backoff.after_failure(),
                        };
                        if publish.send_if_modified(|last| replace(last, Some(found.clone()))) {
                            warn("the event log is not ready", found.as_ref().err());
                            changed();
                        }
                        if found.is_ok() {
                            let unlike = look(&target, "topic settings", settings::follow).await.err();
                            if publish_settings.send_if_modified(|last| replace(last, unlike.clone())) {
                                warn("the topics' settings may not be as they should", unlike.as_ref());
                                changed();
                            }
                        }
                        pause
                    }
                };
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                    gone = targets.changed() => if gone.is_err() { return } else { backoff.reset() },
                }
            }
        });
        Self { target, outcome, sight, settings }
    }

    /// Says what must be; a change is looked at at once.
    pub fn aim(&self, target: Target) {
        self.target.send_if_modified(|current| {
            let same = current.as_deref() == Some(&target);
            if !same {
                *current = Some(Arc::new(target));
            }
            !same
        });
    }

    /// What the last look found.
    pub fn outcome(&self) -> Outcome {
        self.outcome.borrow().clone()
    }

    /// What was last seen of managed brokers; it says when.
    pub fn sight(&self) -> Option<Arc<Sight>> {
        self.sight.borrow().clone()
    }

    /// Why the topics' settings may not be as they should, although the event log works.
    pub fn settings(&self) -> Option<Trouble> {
        self.settings.borrow().clone()
    }
}

fn warn(what: &str, trouble: Option<&Trouble>) {
    if let Some(trouble) = trouble {
        tracing::warn!(reason = trouble.reason, message = %trouble.message, "{what}");
    }
}

/// Whether something else is there now.
fn replace<T: PartialEq>(last: &mut T, found: T) -> bool {
    let differs = *last != found;
    if differs {
        *last = found;
    }
    differs
}

/// The topics as they must be, and who may do what.
async fn look_at_all(target: &Arc<Target>) -> Result<(), Trouble> {
    let topics = look(target, "event log", admin::ensure).await;
    let Some(rights) = &target.rights else { return topics };
    if topics.as_ref().is_err_and(|trouble| trouble.reason == reason::EVENT_LOG_UNREACHABLE) {
        return topics;
    }
    // What is the matter with the topics keeps nobody's rights away.
    let rights = match panics::caught("event log", acls::ensure(target, rights)).await {
        Ok(found) => found,
        Err(panicked) => Err(Trouble { reason: reason::RECONCILE_FAILED, message: panicked.to_string() }),
    };
    topics.and(rights)
}

async fn look(
    target: &Arc<Target>,
    what: &'static str,
    ask: fn(&Target) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let target = Arc::clone(target);
    // Caught on its own thread: it concerns one ChatCluster alone.
    let ask = move || panics::caught_here(what, || ask(&target));
    match tokio::task::spawn_blocking(ask).await {
        Ok(Ok(found)) => found,
        Ok(Err(panicked)) => Err(Trouble { reason: reason::RECONCILE_FAILED, message: panicked.to_string() }),
        Err(error) => Err(Trouble {
            reason: reason::RECONCILE_FAILED,
            message: format!("looking at the event log failed: {error}"),
        }),
    }
}
