//! What a ChatCluster's services and consumers say of themselves, asked once a minute beside the passes: how far they lag behind the event
//! log, how much waits in storage's outbox, whose Kafka clients are replaced.
//!
//! While the consumers get on, the brokers are asked in every second round only. A pass only reads the last answer: who does not answer holds
//! nothing up, and says nothing.

mod judge;
mod lag;
mod scrape;

pub use judge::{Found, GroupLag, Stuck};

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kith_crds::names;
use kith_platform::{Consumer, Service};
use kube::ResourceExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::judge::Memory;
use crate::{
    apply::Live,
    eventlog::Target,
    panics,
    render::{pod::ADMIN_PORT, versions},
};

/// Between two rounds of questions.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Pods asked in one round; more do not change what is said.
const PODS_MAX: usize = 128;

/// Whom to ask.
#[derive(Clone, PartialEq, Eq)]
pub struct Brief {
    /// Pods by name, with the address of their admin port.
    pub pods: Vec<(String, SocketAddr)>,
    /// The brokers and topics.
    pub target: Target,
    /// What the services of the ChatCluster's version read.
    pub consumers: Vec<Consumer>,
}

impl Brief {
    /// The pods that run of those that are asked.
    pub fn new(pods: &Live<Pod>, target: Target, version: &str) -> Self {
        // Those whose numbers say something of the event log.
        let asked = |pod: &&Pod| {
            let service = pod.labels().get(names::LABEL_COMPONENT).and_then(|name| Service::called(name));
            service.is_some_and(|service| service.log().is_used())
        };
        let address = |pod: &Pod| {
            let status = pod.status.as_ref().filter(|s| s.phase.as_deref() == Some("Running"))?;
            let ip: IpAddr = status.pod_ip.as_ref()?.parse().ok()?;
            Some((pod.name_any(), SocketAddr::new(ip, u16::try_from(ADMIN_PORT).ok()?)))
        };
        let pods = pods.values().filter(asked).filter_map(address).take(PODS_MAX).collect();
        let services = versions::services(version).into_iter();
        Self { pods, target, consumers: services.flat_map(|service| service.log().consumes).copied().collect() }
    }
}

/// The task that asks.
pub struct Survey {
    brief: watch::Sender<Option<Arc<Brief>>>,
    found: watch::Receiver<Found>,
}

impl Survey {
    /// Starts the task; it waits for a brief.
    pub fn start(shutdown: CancellationToken) -> Self {
        let (brief, mut briefs) = watch::channel(None::<Arc<Brief>>);
        let (publish, found) = watch::channel(Found::default());
        tokio::spawn(async move {
            let mut memory = Memory::default();
            let mut spare = false;
            // Whom to ask changes with every pod; the first brief alone is worth hurrying for.
            if !matches!(shutdown.run_until_cancelled(briefs.wait_for(Option::is_some)).await, Some(Ok(_))) {
                return;
            }
            let mut tick = tokio::time::interval(LOOK_AGAIN);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while shutdown.run_until_cancelled(tick.tick()).await.is_some() {
                let Some(brief) = briefs.borrow().clone() else { continue };
                let Some((lags, samples)) = shutdown.run_until_cancelled(ask(brief, !spare)).await else { return };
                let now = Instant::now();
                let mut found = memory.judge(now, lags, samples);
                if spare {
                    found.lags.clone_from(&publish.borrow().lags);
                }
                // Each question to the brokers costs a client of its own, with its threads.
                spare = !spare && found.lags.is_some() && memory.is_calm(now);
                publish.send_replace(found);
            }
        });
        Self { brief, found }
    }

    /// Says whom to ask from now on.
    pub fn aim(&self, brief: Brief) {
        self.brief.send_if_modified(|current| {
            let same = current.as_deref() == Some(&brief);
            if !same {
                *current = Some(Arc::new(brief));
            }
            !same
        });
    }

    /// What the last round found.
    pub fn found(&self) -> Found {
        self.found.borrow().clone()
    }
}

async fn ask(brief: Arc<Brief>, with_lags: bool) -> (Option<Vec<lag::Group>>, Vec<(String, scrape::Sample)>) {
    if !with_lags {
        return (None, scrape::all(&brief.pods).await);
    }
    let (target, consumers) = (brief.target.clone(), brief.consumers.clone());
    // Caught on its own thread: it concerns one ChatCluster alone.
    let lags = tokio::task::spawn_blocking(move || panics::caught_here("survey", || lag::measure(&target, &consumers)));
    let (lags, samples) = tokio::join!(lags, scrape::all(&brief.pods));
    let lags = match lags {
        Ok(Ok(Ok(groups))) => Some(groups),
        Ok(Ok(Err(error))) => {
            tracing::debug!(%error, "how far consumers lag is not known");
            None
        }
        Ok(Err(panicked)) => {
            tracing::error!(%panicked, "how far consumers lag is not known");
            None
        }
        Err(error) => {
            tracing::error!(%error, "how far consumers lag is not known");
            None
        }
    };
    (lags, samples)
}
