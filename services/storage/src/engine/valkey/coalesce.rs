//! Many readers of one thing share reads, and still each sees everything that was committed before it asked.
//!
//! While a read is under way, those who come wait for the next one, which begins after they came; joining the one under way could miss
//! what was committed since it began. So a hot conversation costs the engine one read at a time.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// What one who waits is told.
enum Turn<K: Hash + Eq + Clone, V> {
    /// To read.
    Read(Lead<K, V>),
    Done(V),
}

type Waiter<K, V> = oneshot::Sender<Turn<K, V>>;
type All<K, V> = Arc<Mutex<HashMap<K, Vec<Waiter<K, V>>>>>;

/// Reads under way, by what they read; who waits for the next.
pub(super) struct Coalesce<K: Hash + Eq + Clone, V>(All<K, V>);

impl<K: Hash + Eq + Clone, V> Default for Coalesce<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// The right to read one thing, for `others` as well. It is passed on when it ends, however it ends: also when it was handed to somebody
/// who went away before taking it.
struct Lead<K: Hash + Eq + Clone, V> {
    all: All<K, V>,
    key: K,
    others: Vec<Waiter<K, V>>,
    /// Whether it was never handed over.
    void: bool,
}

impl<K: Hash + Eq + Clone, V> Drop for Lead<K, V> {
    fn drop(&mut self) {
        if self.void {
            return;
        }
        let mut all = self.all.lock();
        let mut waiting = all.get_mut(&self.key).map(std::mem::take).unwrap_or_default();
        while !waiting.is_empty() {
            let next = waiting.remove(0);
            let lead = Self { all: self.all.clone(), key: self.key.clone(), others: waiting, void: false };
            match next.send(Turn::Read(lead)) {
                // It has gone; the others are still there. Nothing is passed on by what was not handed over: the lock is held.
                Err(Turn::Read(mut lead)) => {
                    lead.void = true;
                    waiting = std::mem::take(&mut lead.others);
                }
                Ok(()) | Err(Turn::Done(_)) => return,
            }
        }
        all.remove(&self.key);
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Coalesce<K, V> {
    /// Reads, or takes over what another read that began after this call. A failure is not shared: who waited reads for itself.
    pub(super) async fn read<E>(&self, key: K, read: impl Future<Output = Result<V, E>>) -> Result<V, E> {
        let lead = {
            let mut all = self.0.lock();
            match all.get_mut(&key) {
                None => {
                    all.insert(key.clone(), Vec::new());
                    Ok(Lead { all: self.0.clone(), key, others: Vec::new(), void: false })
                }
                Some(waiting) => {
                    let (send, turn) = oneshot::channel();
                    waiting.push(send);
                    Err(turn)
                }
            }
        };
        let mut lead = match lead {
            Ok(lead) => lead,
            Err(turn) => match turn.await {
                Ok(Turn::Done(value)) => {
                    metrics::counter!("kith_storage_reads_shared_total").increment(1);
                    return Ok(value);
                }
                Ok(Turn::Read(lead)) => lead,
                // The one that read for this one has failed or gone.
                Err(_) => return read.await,
            },
        };
        let outcome = read.await;
        let others = std::mem::take(&mut lead.others);
        drop(lead);
        if let Ok(value) = &outcome {
            for other in others {
                // An error means that it has gone.
                drop(other.send(Turn::Done(value.clone())));
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn readers_share_a_read_that_began_after_they_came() {
        let (all, reads) = (Arc::new(Coalesce::<u8, u32>::default()), Arc::new(AtomicU32::new(0)));
        let (open, gate) = tokio::sync::watch::channel(false);
        let start = || {
            let (all, reads, mut gate) = (all.clone(), reads.clone(), gate.clone());
            tokio::spawn(async move {
                let read = async {
                    let began = reads.fetch_add(1, Ordering::SeqCst);
                    gate.wait_for(|open| *open).await.map_err(drop)?;
                    Ok::<_, ()>(began)
                };
                all.read(1, read).await
            })
        };
        let first = start();
        while reads.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let later: Vec<_> = (0..50).map(|_| start()).collect();
        while all.0.lock()[&1].len() < 50 {
            tokio::task::yield_now().await;
        }
        // Whoever goes away does not take the turn of the others along.
        later[0].abort();
        open.send(true).unwrap();
        assert_eq!(first.await.unwrap(), Ok(0));
        for one in later.into_iter().skip(1) {
            assert_eq!(one.await.unwrap(), Ok(1), "never the read that was under way already");
        }
        assert_eq!(reads.load(Ordering::SeqCst), 2);
        assert!(all.0.lock().is_empty());
    }

    #[tokio::test]
    async fn one_who_goes_away_with_the_turn_passes_it_on() {
        let all = Coalesce::<u8, u32>::default();
        let (open, gate) = oneshot::channel::<()>();
        let first = all.read(1, async { gate.await.map(|()| 1).map_err(drop) });
        let mut gone = Box::pin(all.read(1, async { Ok::<_, ()>(2) }));
        let last = all.read(1, async { Ok::<_, ()>(3) });
        let (mut first, mut last) = (std::pin::pin!(first), std::pin::pin!(last));
        assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut gone).is_pending());
        assert!(futures::poll!(&mut last).is_pending());
        open.send(()).unwrap();
        assert_eq!(first.await, Ok(1));
        // It has been told to read, and does not come to look.
        drop(gone);
        assert_eq!(last.await, Ok(3));
        assert!(all.0.lock().is_empty());
    }

    #[tokio::test]
    async fn a_failed_read_is_not_shared() {
        let all = Coalesce::<u8, u32>::default();
        let failing = all.read(1, async { Err::<u32, _>("no") });
        let good = all.read(1, async { Ok::<_, &str>(7) });
        let (failed, fine) = tokio::join!(failing, good);
        assert_eq!((failed, fine), (Err("no"), Ok(7)));
    }
}
