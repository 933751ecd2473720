//! Batches to a keyed service: split by instance, asked all at once, and what comes back retryable split and asked again.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use tonic::Code;

use crate::{
    client::Transport,
    error::{Error, reason},
    route::{ATTEMPT, Router},
};
use kith_kit::backoff::Backoff;

/// Pauses between rounds.
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// What became of one item.
pub enum Settled<K, V> {
    /// Its answer.
    Done(V),
    /// Its own failure; asked again if that makes sense.
    Failed(K, Error),
}

/// The values of a batch whose items cannot fail one by one.
pub fn settled<K, V>(items: Vec<Settled<K, V>>) -> Result<Vec<V>, Error> {
    items
        .into_iter()
        .map(|item| match item {
            Settled::Done(value) => Ok(value),
            Settled::Failed(_, error) => Err(error),
        })
        .collect()
}

/// A request with the deadline of one attempt.
pub fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(ATTEMPT);
    request
}

impl Router {
    /// Asks the owners of all items until each is settled or `deadline` is over. `ask` makes one attempt for the items of one instance and
    /// settles each of them; those of an instance that refuses them as a whole, or does not answer in time, fail for themselves.
    pub async fn batch<K, V, F, Fut>(
        &self,
        deadline: Duration,
        items: Vec<K>,
        key: impl Fn(&K) -> u64,
        ask: F,
    ) -> Result<Vec<Settled<K, V>>, Error>
    where
        K: Clone,
        F: Fn(Transport, Vec<K>) -> Fut,
        Fut: Future<Output = Result<Vec<Settled<K, V>>, tonic::Status>>,
    {
        let end = Instant::now() + deadline;
        let mut waiting = items;
        let mut done = Vec::with_capacity(waiting.len());
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        let mut one_by_one = false;
        while !waiting.is_empty() {
            let mut round = Round { last: Error::unavailable("no instance is ready"), again: Vec::new(), one_by_one };
            let mut asked = FuturesUnordered::new();
            for (address, group) in self.split(waiting.drain(..), &key, one_by_one) {
                let Some(address) = address else {
                    round.again.extend(group);
                    continue;
                };
                let answer = ask(self.dialer().channel(&address), group.clone());
                let left = end.saturating_duration_since(Instant::now()).min(ATTEMPT);
                asked.push(async move {
                    let answer = self.attempt(&address, left, answer).await;
                    (address, group, answer)
                });
            }
            while let Some((address, group, answer)) = asked.next().await {
                match answer {
                    Some(Ok(settled)) => done.extend(self.keep(settled, &key, &address, &mut round)),
                    Some(Err(status)) => {
                        done.extend(self.refused(group, &key, &address, &status.into(), &mut round));
                    }
                    None => {
                        let late = Error::unavailable("a part of the platform did not answer in time");
                        done.extend(self.refused(group, &key, &address, &late, &mut round));
                    }
                }
            }
            drop(asked);
            waiting = round.again;
            one_by_one = round.one_by_one;
            if waiting.is_empty() {
                break;
            }
            if Instant::now() >= end {
                let error = out_of_time(round.last);
                done.extend(waiting.into_iter().map(|item| Settled::Failed(item, error.clone())));
                break;
            }
            self.discovery().look_again();
            backoff.pause_until(end).await;
        }
        Ok(done)
    }

    /// Groups items by the instance to ask.
    fn split<K>(
        &self,
        items: impl Iterator<Item = K>,
        key: impl Fn(&K) -> u64,
        one_by_one: bool,
    ) -> Vec<(Option<String>, Vec<K>)> {
        let keyed = items.map(|item| (key(&item), item));
        if one_by_one {
            keyed.map(|(key, item)| (self.address(key), vec![item])).collect()
        } else {
            self.group(keyed).into_iter().collect()
        }
    }

    /// Keeps what is settled for good and puts the rest back.
    fn keep<K, V>(
        &self,
        settled: Vec<Settled<K, V>>,
        key: impl Fn(&K) -> u64,
        address: &str,
        round: &mut Round<K>,
    ) -> Vec<Settled<K, V>> {
        let mut kept = Vec::with_capacity(settled.len());
        for item in settled {
            match item {
                Settled::Failed(item, error) if self.learn(key(&item), address, &error) => {
                    round.again.push(item);
                    round.last = error;
                }
                settled => kept.push(settled),
            }
        }
        kept
    }

    /// Puts a refused group back, or settles it.
    fn refused<K, V>(
        &self,
        group: Vec<K>,
        key: impl Fn(&K) -> u64,
        address: &str,
        error: &Error,
        round: &mut Round<K>,
    ) -> Vec<Settled<K, V>> {
        // The hint of a refused group is about one key, and nobody says which: ask for each alone and learn then.
        if error.reason.as_deref() == Some(reason::WRONG_HOLDER) && group.len() > 1 {
            round.one_by_one = true;
        } else {
            let key = group.first().map_or(0, key);
            if !self.learn(key, address, error) && error.code != Code::DeadlineExceeded {
                return group.into_iter().map(|item| Settled::Failed(item, error.clone())).collect();
            }
        }
        round.again.extend(group);
        round.last = error.clone();
        Vec::new()
    }
}

/// What one round leaves behind.
struct Round<K> {
    last: Error,
    again: Vec<K>,
    one_by_one: bool,
}

fn out_of_time(last: Error) -> Error {
    if last.code == Code::Unavailable {
        last
    } else {
        Error::new(Code::DeadlineExceeded, "a part of the platform gave no answer in time: try again")
    }
}
