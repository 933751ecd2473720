//! Asynchronous work off the event log: deliver online, catch up at login.
//!
//! Two consumer groups. `<cluster>.tasks` reads `<cluster>.events` in strict order and hands each change to the instances of `sessions`
//! that own its recipients. `<cluster>.tasks-login` reads `<cluster>.sessions` and sends a session what its device has missed. An offset
//! is committed only behind finished work: a process that dies repeats, and clients know a message by its id.
//!
//! Rooms: [`change`], [`plan`], [`lanes`] and [`catchup`] decide (pure); [`audience`] asks storage; [`events`] and [`login`] are the
//! handlers; [`deliver`] calls `sessions`. The sender's own sessions get the message too, the sending one included: an event does not
//! name the device it came from.

pub mod aside;
pub mod audience;
pub mod catchup;
pub mod change;
pub mod deliver;
pub mod events;
pub mod lanes;
pub mod login;
pub mod plan;

use std::{sync::Arc, time::Duration};

use kith_clients::{sessions::Sessions, storage::Storage};
use kith_eventlog::{
    consumer::{self, ConsumerError, Subscription},
    origin::Origin,
};
use kith_kit::{
    backoff::Backoff,
    config::{Config, Instance},
    readiness::Readiness,
};
use kith_platform::topic;
use kith_rpc::route::RouteError;
use thiserror::Error;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{aside::Aside, deliver::Deliverer, events::Online, login::Logins};

/// The pauses of one series of attempts at `storage` or `sessions`.
pub(crate) fn pauses() -> Backoff {
    Backoff::new(Duration::from_millis(10), Duration::from_secs(1))
}

/// Why the service ended or did not start.
#[derive(Debug, Error)]
pub enum Error {
    /// Storage or sessions cannot be routed to.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The event log cannot be read.
    #[error(transparent)]
    Consumer(#[from] ConsumerError),
    /// No event log is configured.
    #[error("configuration: kafka: tasks need the event log")]
    NoKafka,
}

/// Works until `shutdown`; then what is in hand gets a moment, and the rest comes again at the next process.
pub async fn run(
    config: Config,
    instance: Instance,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let kafka = config.kafka.clone().ok_or(Error::NoKafka)?;
    // Outlives the consumers: their last work still needs its connections.
    let working = CancellationToken::new();
    let _end = working.clone().drop_guard();
    let storage = Storage::new(&config, working.clone())?;
    let sessions = Sessions::new(&config, working.clone())?;
    let tracker = TaskTracker::new();

    let deliverer = Deliverer::new(sessions.router().clone(), working.clone());
    let aside = Aside::start(&kafka, config.topic(topic::SET_ASIDE), &tracker, &working);
    let online = Arc::new(Online::new(storage.clone(), deliverer.clone(), aside.clone()));
    let logins = Arc::new(Logins::start(&storage, &sessions, aside, &tracker, &working));
    let name = &config.cluster.name;
    let events = Subscription {
        topic: config.events_topic(),
        origin: Origin::counted(&config.cluster),
        group: format!("{name}.tasks"),
        part: "events",
    };
    let opened = Subscription {
        topic: config.sessions_topic(),
        origin: Origin::uncounted(&config.cluster),
        group: format!("{name}.tasks-login"),
        part: "logins",
    };
    tracing::info!(instance = %instance.advertise, "tasks start");

    let consuming = shutdown.child_token();
    let (ended_events, ended_logins) = tokio::join!(
        end_both(&consuming, consumer::run(&kafka, events, online, readiness.clone(), consuming.clone())),
        end_both(&consuming, consumer::run(&kafka, opened, logins, readiness, consuming.clone())),
    );
    working.cancel();
    tracker.close();
    tokio::join!(tracker.wait(), deliverer.ended());
    ended_events?;
    Ok(ended_logins?)
}

/// One consumer that cannot work ends the other: the process starts again as a whole.
async fn end_both<T>(both: &CancellationToken, consumer: impl Future<Output = T>) -> T {
    let outcome = consumer.await;
    both.cancel();
    outcome
}
