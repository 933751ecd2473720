//! A writer that counts on many keys while slots move, and knows what it was promised.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use kith_operator::dataplane::{Links, link::LinkError, parse};
use tokio_util::sync::CancellationToken;

/// What a writer was promised.
#[derive(Debug, Default)]
pub(crate) struct Promised {
    /// Acknowledged increments of each key.
    pub(crate) acknowledged: HashMap<String, u64>,
    /// Increments whose outcome is unknown.
    pub(crate) unknown: HashMap<String, u64>,
    /// How long each acknowledged increment took, retries included.
    pub(crate) waits: Vec<Duration>,
}

impl Promised {
    pub(crate) fn total(&self) -> u64 {
        self.acknowledged.values().sum()
    }

    pub(crate) fn quantile(&mut self, q: f64) -> Duration {
        self.waits.sort_unstable();
        let at = ((self.waits.len() as f64 * q) as usize).min(self.waits.len().saturating_sub(1));
        self.waits.get(at).copied().unwrap_or_default()
    }
}

/// Counts up key after key, following redirects, until `end`. A write counts as acknowledged when so many replicas hold it; one that
/// they do not confirm has an unknown outcome, as has one without an answer.
pub(crate) async fn count(
    links: Links,
    seeds: Vec<SocketAddr>,
    keys: Vec<String>,
    replicas: u32,
    end: CancellationToken,
) -> Promised {
    let mut promised = Promised::default();
    let mut route: HashMap<String, SocketAddr> = HashMap::new();
    let mut next_seed = 0;
    for key in keys.iter().cycle() {
        if end.is_cancelled() {
            break;
        }
        let begun = Instant::now();
        loop {
            let address = *route.entry(key.clone()).or_insert(seeds[next_seed % seeds.len()]);
            match increment(&links, address, key, replicas).await {
                Ok(false) => {
                    *promised.unknown.entry(key.clone()).or_default() += 1;
                    break;
                }
                Ok(true) => {
                    *promised.acknowledged.entry(key.clone()).or_default() += 1;
                    promised.waits.push(begun.elapsed());
                    break;
                }
                Err(error) => {
                    let words = error.to_string();
                    if let Some(to) = moved_to(&words) {
                        route.insert(key.clone(), to);
                    } else {
                        if !error.is_refusal() {
                            *promised.unknown.entry(key.clone()).or_default() += 1;
                        }
                        next_seed += 1;
                        route.insert(key.clone(), seeds[next_seed % seeds.len()]);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            }
            if end.is_cancelled() {
                break;
            }
        }
    }
    promised
}

async fn increment(links: &Links, address: SocketAddr, key: &str, replicas: u32) -> Result<bool, LinkError> {
    let mut both = redis::Pipeline::new();
    both.cmd("FCALL").arg("incr").arg(1).arg(key).arg(1);
    both.cmd("WAIT").arg(replicas).arg(500);
    let answers = links.ask(address, &both, Duration::from_secs(1)).await?;
    match answers.as_slice() {
        [redis::Value::ServerError(error), _] => {
            Err(kith_kit::valkey::ValkeyError::Redis { address: address.to_string(), source: error.clone().into() }
                .into())
        }
        [_, held] => Ok(parse::number(held).is_some_and(|n| n >= i64::from(replicas))),
        _ => Ok(false),
    }
}

/// The address in a redirect.
fn moved_to(words: &str) -> Option<SocketAddr> {
    let lower = words.to_ascii_lowercase();
    if !lower.contains("moved") {
        return None;
    }
    words.split_whitespace().rev().find_map(|w| w.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok())
}

/// Reads a key wherever it is.
pub(crate) async fn read(links: &Links, seeds: &[SocketAddr], key: &str) -> Option<u64> {
    let mut at = *seeds.first()?;
    for attempt in 0..20 {
        let mut command = redis::cmd("GET");
        command.arg(key);
        match links.ask_one(at, &command).await {
            Ok(value) => return parse::text(&value).and_then(|t| t.parse().ok()),
            Err(error) => at = moved_to(&error.to_string()).unwrap_or(seeds[attempt % seeds.len()]),
        }
    }
    None
}
