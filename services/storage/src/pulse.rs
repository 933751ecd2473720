//! Whether the other instances live, by asking them. A node that dies takes its instances along at once and out of discovery after most
//! of a minute; what they held is claimed when they have been silent for some seconds. A silent instance that lives all the same is fenced
//! by the claims, and can only say so: nothing is written twice.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::future::join_all;
use kith_kit::{client::is_alive, route::Router};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::engine::valkey::View;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(500);
/// How long a peer may take to say that it lives.
const ANSWER: Duration = Duration::from_millis(800);
/// So many silent looks in a row: two seconds where connections are refused, five where nothing comes back.
const MISSES: u32 = 4;

/// Looks at all peers until `end`.
pub(crate) async fn run(view: Arc<View>, router: Router, end: CancellationToken) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut misses = Misses::default();
    while end.run_until_cancelled(tick.tick()).await.is_some() {
        let peers = view.peers();
        let looks = peers.iter().map(|peer| is_alive(router.dialer().channel(peer), ANSWER));
        let alive = join_all(looks).await;
        misses.forget_others(&peers);
        view.only_silent(&peers);
        for (peer, alive) in peers.iter().zip(alive) {
            match misses.note(peer, alive) {
                Some(Turn::Silent) if view.silent(peer) => {
                    tracing::warn!(%peer, "a storage instance is silent: its partitions are claimed");
                    metrics::counter!("kith_storage_silent_peers_total").increment(1);
                }
                Some(Turn::Back) if view.answers(peer) => tracing::info!(%peer, "a storage instance answers again"),
                _ => {}
            }
        }
    }
}

/// How often each peer has not answered.
#[derive(Default)]
struct Misses(HashMap<String, u32>);

#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// It has not answered for long enough; told at each look from then on.
    Silent,
    /// It answers.
    Back,
}

impl Misses {
    fn note(&mut self, peer: &str, alive: bool) -> Option<Turn> {
        if alive {
            return self.0.remove(peer).filter(|missed| *missed >= MISSES).map(|_| Turn::Back);
        }
        let missed = self.0.entry(peer.to_owned()).or_default();
        *missed = missed.saturating_add(1);
        (*missed >= MISSES).then_some(Turn::Silent)
    }

    fn forget_others(&mut self, peers: &[String]) {
        self.0.retain(|peer, _| peers.contains(peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_silent_after_some_looks_in_a_row_and_back_with_its_first_answer() {
        let mut misses = Misses::default();
        for _ in 1..MISSES {
            assert_eq!(misses.note("a", false), None);
        }
        assert_eq!(misses.note("a", true), None, "it was late, not silent");
        for _ in 1..MISSES {
            assert_eq!(misses.note("a", false), None);
        }
        assert_eq!(misses.note("a", false), Some(Turn::Silent));
        assert_eq!(misses.note("a", false), Some(Turn::Silent));
        assert_eq!(misses.note("a", true), Some(Turn::Back));
        assert_eq!(misses.note("a", true), None);
        misses.note("b", false);
        misses.forget_others(&["a".to_owned()]);
        assert!(misses.0.is_empty());
    }
}
