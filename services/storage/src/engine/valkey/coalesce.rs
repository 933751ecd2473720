//! Many readers of one thing share reads, and still each sees everything that was committed before it asked.
//!
//! While a read is under way, those who come wait for the next one, which begins after they came; joining the one under way could miss
//! what was committed since it began. So a hot conversation costs the engine one read at a time.

use std::{collections::HashMap, hash::Hash};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// What one who waits is told.
enum Turn<V> {
    /// To read, for those as well.
    Read(Vec<Waiter<V>>),
    Done(V),
}

type Waiter<V> = oneshot::Sender<Turn<V>>;

/// Reads under way, by what they read; who waits for the next.
pub(super) struct Coalesce<K, V>(Mutex<HashMap<K, Vec<Waiter<V>>>>);

impl<K, V> Default for Coalesce<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// The right to read one thing; passed on when it ends, however it ends.
struct Lead<'a, K: Hash + Eq, V> {
    all: &'a Coalesce<K, V>,
    key: &'a K,
}

impl<K: Hash + Eq, V> Drop for Lead<'_, K, V> {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        let mut waiting = all.get_mut(self.key).map(std::mem::take).unwrap_or_default();
        while !waiting.is_empty() {
            let next = waiting.remove(0);
            match next.send(Turn::Read(waiting)) {
                Ok(()) => return,
                // It has gone; the others are still there.
                Err(Turn::Read(rest)) => waiting = rest,
                Err(Turn::Done(_)) => return,
            }
        }
        all.remove(self.key);
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Coalesce<K, V> {
    /// Reads, or takes over what another read that began after this call. A failure is not shared: who waited reads for itself.
    pub(super) async fn read<E>(&self, key: K, read: impl Future<Output = Result<V, E>>) -> Result<V, E> {
        let waits = {
            let mut all = self.0.lock();
            match all.get_mut(&key) {
                None => {
                    all.insert(key.clone(), Vec::new());
                    None
                }
                Some(waiting) => {
                    let (send, turn) = oneshot::channel();
                    waiting.push(send);
                    Some(turn)
                }
            }
        };
        let others = match waits {
            None => Vec::new(),
            Some(turn) => match turn.await {
                Ok(Turn::Done(value)) => {
                    metrics::counter!("kith_storage_reads_shared_total").increment(1);
                    return Ok(value);
                }
                Ok(Turn::Read(others)) => others,
                // The one that read for this one has failed or gone.
                Err(_) => return read.await,
            },
        };
        let lead = Lead { all: self, key: &key };
        let outcome = read.await;
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
    async fn a_failed_read_is_not_shared() {
        let all = Coalesce::<u8, u32>::default();
        let failing = all.read(1, async { Err::<u32, _>("no") });
        let good = all.read(1, async { Ok::<_, &str>(7) });
        let (failed, fine) = tokio::join!(failing, good);
        assert_eq!((failed, fine), (Err("no"), Ok(7)));
    }
}
