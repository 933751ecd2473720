//! Changing a shard's primary: the takeover of a dead one's place, and the planned hand-over without a gap.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use redis::Cmd;
use thiserror::Error;

use super::{
    apply::node_of,
    bus,
    link::{LinkError, Links, READ_DEADLINE, WRITE_DEADLINE},
    parse::{self, Info},
    types::{Desired, NodeId, Observation, Role},
};
use crate::lease::LeaseGuard;

/// Writes are held back on the old primary for this long at most; they go on by themselves if the operator dies.
const PAUSE: Duration = Duration::from_secs(5);
/// The replica must have caught up within this time, so that the takeover is over long before the pause is.
const CATCH_UP: Duration = Duration::from_millis(1_500);
/// What must be left of the pause when the takeover is sent.
const PAUSE_MARGIN: Duration = Duration::from_secs(2);
/// The old primary learns of its successor from the bus within milliseconds.
const STEP_DOWN: Duration = Duration::from_secs(1);
/// The takeover as a script that is not passed on to replicas.
///
/// A replica that takes over deletes the keys of slots that it was to be given and that nobody has yet. The engine (9.1.2: `call` in
/// `server.c`, `clusterFailoverReplaceYourPrimary` in `cluster_legacy.c`) therefore takes the command for a write: the other replicas would
/// read it from their new primary, take over from it in their turn and crash of it, and a restart would find it in the append-only file.
/// The deletions themselves are passed on all the same. Sent by `EVAL_RO`, which a pause of writes does not hold back.
const TAKEOVER: &str = "server.set_repl(server.REPL_NONE) return server.call('CLUSTER', 'FAILOVER', 'TAKEOVER')";
/// Between two looks.
const POLL: Duration = Duration::from_millis(5);

/// Why a change of primary did not happen.
#[derive(Debug, Error)]
pub enum SwitchError {
    /// A node did not do what it was asked.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A pod was not in the observation.
    #[error("{0} was not seen")]
    Unseen(String),
    /// The copies of the shard would not all hear of the change.
    #[error("not everybody would hear of it: {0}")]
    OutOfTouch(String),
    /// The replica was too far behind.
    #[error("{0} did not catch up in time; the primary goes on")]
    Behind(String),
    /// The replica still says that it is one.
    #[error("{0} did not take over in time")]
    NotPromoted(String),
}

fn cmd(words: &[&str]) -> Cmd {
    let mut command = redis::cmd(words.first().copied().unwrap_or("PING"));
    for word in words.iter().skip(1) {
        command.arg(*word);
    }
    command
}

async fn replication(links: &Links, address: SocketAddr) -> Result<Info, LinkError> {
    let answer = links.ask_one(address, &cmd(&["INFO", "replication"])).await?;
    Ok(Info::parse(parse::text(&answer).unwrap_or_default()))
}

async fn is_primary(links: &Links, address: SocketAddr) -> Result<bool, LinkError> {
    Ok(matches!(replication(links, address).await?.role()?.0, Role::Primary { .. }))
}

/// Makes the replica `pod` the primary, without asking the cluster. Answers how long it took.
pub async fn takeover(
    links: &Links,
    guard: &LeaseGuard,
    desired: &Desired,
    seen: &Observation,
    pod: &str,
) -> Result<Duration, SwitchError> {
    let (address, id) = node_of(desired, seen, pod).ok_or_else(|| SwitchError::Unseen(pod.to_owned()))?;
    take(links, guard, address, &id, pod).await
}

async fn take(
    links: &Links,
    guard: &LeaseGuard,
    address: SocketAddr,
    id: &NodeId,
    pod: &str,
) -> Result<Duration, SwitchError> {
    let begun = Instant::now();
    links.write(address, id, &cmd(&["EVAL_RO", TAKEOVER, "0"]), guard).await?;
    while !is_primary(links, address).await? {
        if begun.elapsed() > WRITE_DEADLINE {
            return Err(SwitchError::NotPromoted(pod.to_owned()));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(begun.elapsed())
}

/// Hands the shard over from its living primary `from` to its replica `to`: writes pause, the replica catches up, takes over, the old
/// primary learns of it, writes go on. Answers for how long writes were held back.
pub async fn switchover(
    links: &Links,
    guard: &LeaseGuard,
    desired: &Desired,
    seen: &Observation,
    from: &str,
    to: &str,
) -> Result<Duration, SwitchError> {
    let old = node_of(desired, seen, from).ok_or_else(|| SwitchError::Unseen(from.to_owned()))?;
    let new = node_of(desired, seen, to).ok_or_else(|| SwitchError::Unseen(to.to_owned()))?;
    // An old primary that does not hear of its successor goes on with writes once the pause is over.
    let shard = desired.member(from).map(|(shard, _)| shard.name.as_str());
    if let Some(why) = [&old.1, &new.1].into_iter().find_map(|id| bus::out_of_touch(seen, id, shard)) {
        return Err(SwitchError::OutOfTouch(why));
    }
    let begun = Instant::now();
    let pause = PAUSE.as_millis().to_string();
    links.write(old.0, &old.1, &cmd(&["CLIENT", "PAUSE", &pause, "WRITE"]), guard).await?;
    let result = hand_over(links, guard, &old, &new, to, begun).await;
    let known = match &result {
        Ok(()) => step_down(links, old.0).await,
        // The takeover was not sent, or was refused: the old primary is the primary and goes on at once.
        Err(SwitchError::Behind(_)) => true,
        Err(SwitchError::Link(e)) => e.is_refusal(),
        // It may have happened. The pause ends by itself, and until then the bus has told the old primary.
        Err(_) => false,
    };
    if known {
        links.ask_one(old.0, &cmd(&["CLIENT", "UNPAUSE"])).await?;
    }
    result.map(|()| begun.elapsed())
}

async fn hand_over(
    links: &Links,
    guard: &LeaseGuard,
    old: &(SocketAddr, NodeId),
    new: &(SocketAddr, NodeId),
    to: &str,
    begun: Instant,
) -> Result<(), SwitchError> {
    let paused = replication(links, old.0).await?;
    let (goal, history) = (paused.role().map_err(LinkError::from)?.1, paused.history());
    loop {
        let replica = replication(links, new.0).await?;
        if replica.history().id == history.id && replica.role().map_err(LinkError::from)?.1 >= goal {
            break;
        }
        if begun.elapsed() > CATCH_UP {
            return Err(SwitchError::Behind(to.to_owned()));
        }
        tokio::time::sleep(POLL).await;
    }
    if PAUSE.saturating_sub(begun.elapsed()) < PAUSE_MARGIN {
        return Err(SwitchError::Behind(to.to_owned()));
    }
    take(links, guard, new.0, &new.1, to).await.map(drop)
}

/// Waits until the old primary says that it is a replica; answers whether it did.
async fn step_down(links: &Links, address: SocketAddr) -> bool {
    let end = Instant::now() + STEP_DOWN.max(READ_DEADLINE);
    while Instant::now() < end {
        if matches!(is_primary(links, address).await, Ok(false)) {
            return true;
        }
        tokio::time::sleep(POLL).await;
    }
    false
}
