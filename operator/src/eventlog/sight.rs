//! What the managed brokers say of themselves: who is there, and who has caught up with which partition. Asked every few seconds.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kith_kit::backoff::Backoff;
use rdkafka::{admin::AdminClient, error::KafkaError, metadata::Metadata};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Target,
    admin::{ASK, Words, client_config},
};
use crate::panics::{self, Panicked};

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// One look at all brokers and all topics, internal ones included.
///
/// A broker that the others list has registered anew with the controllers and follows their log to its end; since every broker is a
/// controller too, on the same log, one that is listed is a voter that follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// When it was asked for.
    pub at: Timestamp,
    /// Ids of the brokers that are there, by their number.
    pub brokers: BTreeSet<u32>,
    /// Every partition.
    pub partitions: Vec<Partition>,
}

/// Who keeps one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub number: i32,
    /// Whether a broker leads it.
    pub led: bool,
    /// The brokers that keep it.
    pub replicas: BTreeSet<u32>,
    /// Those of them that have caught up.
    pub in_sync: BTreeSet<u32>,
}

impl Partition {
    /// Whether everyone who should keep it does.
    pub fn is_full(&self) -> bool {
        self.led && self.in_sync.is_superset(&self.replicas)
    }
}

impl Sight {
    /// Whether this broker is there and has caught up with all that it keeps.
    pub fn is_in_sync(&self, broker: u32) -> bool {
        let behind = |p: &Partition| p.replicas.contains(&broker) && !p.in_sync.contains(&broker);
        self.brokers.contains(&broker) && !self.partitions.iter().any(behind)
    }

    /// A partition that not everyone who should keep it does.
    pub fn short(&self) -> Option<&Partition> {
        self.partitions.iter().find(|p| !p.is_full())
    }

    /// A partition whose events would be lost with this broker's volume: fewer than `enough` others hold all of them. What no other broker
    /// was meant to keep is gone already.
    pub fn needs(&self, broker: u32, enough: u32) -> Option<&Partition> {
        self.partitions.iter().find(|p| {
            let meant = p.replicas.iter().filter(|b| **b != broker).count();
            let others = p.in_sync.iter().filter(|b| **b != broker).count();
            p.replicas.contains(&broker) && meant > 0 && others < meant.min(usize::try_from(enough).unwrap_or(meant))
        })
    }

    fn same(&self, other: &Self) -> bool {
        self.brokers == other.brokers && self.partitions == other.partitions
    }
}

/// Why nothing was seen.
#[derive(Debug, Error)]
enum Blind {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Panicked(#[from] Panicked),
    #[error("the look was given up: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

/// Looks until the end; `changed` is called when something else is seen than before.
pub(super) async fn follow(
    mut targets: watch::Receiver<Option<Arc<Target>>>,
    publish: watch::Sender<Option<Arc<Sight>>>,
    changed: impl Fn(),
    shutdown: CancellationToken,
) {
    let (mut client, mut backoff) = (None, Backoff::new(FIRST_PAUSE, LONGEST_PAUSE));
    loop {
        let target = targets.borrow_and_update().clone().filter(|target| target.brokers > 0);
        let pause = match target {
            None => LOOK_AGAIN,
            Some(target) => match look(&target, &mut client).await {
                Ok(sight) => {
                    backoff.reset();
                    let differs = publish.borrow().as_ref().is_none_or(|last| !last.same(&sight));
                    publish.send_replace(Some(Arc::new(sight)));
                    if differs {
                        changed();
                    }
                    LOOK_AGAIN
                }
                Err(error) => {
                    // What was seen last stays, with its age; the event log's own look says what is the matter.
                    tracing::debug!(%error, "the brokers were not seen");
                    forget(&mut client);
                    backoff.after_failure()
                }
            },
        };
        let gone = tokio::select! {
            () = shutdown.cancelled() => true,
            () = tokio::time::sleep(pause) => continue,
            changed = targets.changed() => changed.is_err(),
        };
        forget(&mut client);
        if gone {
            return;
        }
    }
}

type Client = Arc<AdminClient<Words>>;

/// Its end waits for its threads.
fn forget(client: &mut Option<Client>) {
    if let Some(client) = client.take() {
        tokio::task::spawn_blocking(move || drop(client));
    }
}

async fn look(target: &Target, client: &mut Option<Client>) -> Result<Sight, Blind> {
    let client = match client {
        Some(client) => client.clone(),
        None => client.insert(Arc::new(client_config(target).create_with_context(Words::default())?)).clone(),
    };
    let at = Timestamp::now();
    let ask = move || client.inner().fetch_metadata(None, ASK).map(|metadata| sight(at, &metadata));
    let asked = tokio::task::spawn_blocking(move || panics::caught_here("brokers", ask)).await?;
    Ok(asked??)
}

fn sight(at: Timestamp, metadata: &Metadata) -> Sight {
    let ids = |list: &[i32]| list.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
    let partitions = metadata.topics().iter().filter(|topic| topic.error().is_none()).flat_map(|topic| {
        topic.partitions().iter().map(|partition| Partition {
            topic: topic.name().to_owned(),
            number: partition.id(),
            led: partition.leader() >= 0,
            replicas: ids(partition.replicas()),
            in_sync: ids(partition.isr()),
        })
    });
    let brokers: Vec<i32> = metadata.brokers().iter().map(rdkafka::metadata::MetadataBroker::id).collect();
    Sight { at, brokers: ids(&brokers), partitions: partitions.collect() }
}

#[cfg(test)]
pub(crate) mod tests {
    use rdkafka::mocking::MockCluster;

    use super::*;

    /// Brokers 0..3 that all keep one partition, of which these have caught up.
    pub(crate) fn seen(at: Timestamp, brokers: &[u32], in_sync: &[u32]) -> Sight {
        let set = |list: &[u32]| list.iter().copied().collect::<BTreeSet<_>>();
        let partition = Partition {
            topic: "demo.events".to_owned(),
            number: 0,
            led: !in_sync.is_empty(),
            replicas: set(&[0, 1, 2]),
            in_sync: set(in_sync),
        };
        Sight { at, brokers: set(brokers), partitions: vec![partition] }
    }

    #[test]
    fn a_broker_is_in_sync_when_it_is_there_and_behind_with_nothing() {
        let sight = seen(Timestamp::UNIX_EPOCH, &[0, 1, 2], &[0, 2]);
        assert!(sight.is_in_sync(0) && !sight.is_in_sync(1));
        assert!(sight.short().is_some());
        let gone = seen(Timestamp::UNIX_EPOCH, &[0, 1], &[0, 1, 2]);
        assert!(!gone.is_in_sync(2) && gone.short().is_none());
    }

    #[test]
    fn a_volume_is_needed_while_too_few_others_hold_what_is_on_it() {
        let at = Timestamp::UNIX_EPOCH;
        assert!(seen(at, &[0, 1, 2], &[0, 1, 2]).needs(2, 2).is_none());
        assert!(seen(at, &[0, 1], &[0, 1]).needs(2, 2).is_none());
        assert!(seen(at, &[0, 1], &[0, 2]).needs(2, 2).is_some(), "one other");
        assert!(seen(at, &[0, 1], &[2]).needs(2, 1).is_some(), "it would come back empty and lead");
        let mut alone = seen(at, &[0, 1], &[2]);
        alone.partitions[0].replicas = [2].into();
        assert!(alone.needs(2, 2).is_none(), "nobody else was meant to keep it");
    }

    #[tokio::test]
    async fn what_the_brokers_say_is_read() {
        let brokers = MockCluster::new(3).unwrap();
        brokers.create_topic("demo.events", 2, 3).unwrap();
        let target = Target { brokers: 3, ..Target::plain(brokers.bootstrap_servers()) };
        let mut client = None;
        let sight = look(&target, &mut client).await.unwrap();
        assert_eq!((sight.brokers.len(), sight.partitions.len()), (3, 2));
        assert!(sight.partitions.iter().all(Partition::is_full), "{sight:?}");
        assert!(client.is_some(), "the connection is kept");
    }
}
