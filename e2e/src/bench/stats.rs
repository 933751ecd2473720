//! What is counted in one phase of a benchmark.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use crate::ledger::{histogram, micros};

/// An acknowledgement later than this is of no use to its sender and does not count as goodput.
const USEFUL: Duration = Duration::from_secs(5);

/// Counts of one phase.
#[derive(Debug, Clone)]
pub struct Stats {
    /// When the phase began.
    pub begin: Instant,
    /// How long messages were sent.
    pub lasts: Duration,
    /// Messages that were due.
    pub due: u64,
    /// Messages that found the client's own queue full: the platform had stopped reading.
    pub stuck: u64,
    /// Acknowledged.
    pub acked: u64,
    /// Acknowledged within the phase and soon enough to be of use.
    pub useful: u64,
    /// Shown to the recipient.
    pub delivered: u64,
    /// Refused, by code.
    pub refused: BTreeMap<String, u64>,
    /// From when it was due to its acknowledgement.
    pub ack: Histogram<u64>,
    /// From when it was due to the recipient's socket.
    pub delivery: Histogram<u64>,
}

impl Stats {
    fn new(lasts: Duration) -> Self {
        Self {
            begin: Instant::now(),
            lasts,
            due: 0,
            stuck: 0,
            acked: 0,
            useful: 0,
            delivered: 0,
            refused: BTreeMap::new(),
            ack: histogram(),
            delivery: histogram(),
        }
    }

    /// Refusals of any kind.
    pub fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Messages without any answer yet.
    pub fn open(&self) -> u64 {
        self.due.saturating_sub(self.stuck + self.acked + self.refusals())
    }

    /// Useful acknowledgements per second.
    pub fn goodput(&self) -> f64 {
        self.useful as f64 / self.lasts.as_secs_f64()
    }

    /// A quantile of the acknowledgements.
    pub fn ack_at(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.ack.value_at_quantile(quantile))
    }

    /// A quantile of the deliveries.
    pub fn delivery_at(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.delivery.value_at_quantile(quantile))
    }
}

fn quantiles(histogram: &Histogram<u64>) -> String {
    let at = |q: f64| histogram.value_at_quantile(q) as f64 / 1_000.0;
    format!("{:8.2} {:8.2} {:8.2} {:8.2}", at(0.5), at(0.99), at(0.999), histogram.max() as f64 / 1_000.0)
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offered = self.due as f64 / self.lasts.as_secs_f64();
        writeln!(
            f,
            "  offered {offered:.0}/s, goodput {:.0}/s; due {}, acknowledged {}, delivered {}, without an answer {}, not taken {}",
            self.goodput(),
            self.due,
            self.acked,
            self.delivered,
            self.open(),
            self.stuck,
        )?;
        if !self.refused.is_empty() {
            writeln!(f, "  refused {:?}", self.refused)?;
        }
        writeln!(f, "  ms              p50      p99    p99.9      max")?;
        writeln!(f, "  ack        {}", quantiles(&self.ack))?;
        if !self.delivery.is_empty() {
            writeln!(f, "  delivery   {}", quantiles(&self.delivery))?;
        }
        Ok(())
    }
}

/// A phase under way, shared by all that count in it.
#[derive(Debug, Clone)]
pub struct Phase(Arc<Mutex<Stats>>);

impl Phase {
    /// Begins now.
    pub fn begin(lasts: Duration) -> Self {
        Self(Arc::new(Mutex::new(Stats::new(lasts))))
    }

    /// A message is due.
    pub fn due(&self) {
        self.0.lock().due += 1;
    }

    /// The client's own queue was full.
    pub fn stuck(&self) {
        self.0.lock().stuck += 1;
    }

    /// An acknowledgement for what was due then.
    pub fn acked(&self, due: Instant) {
        let latency = due.elapsed();
        let mut stats = self.0.lock();
        stats.acked += 1;
        stats.ack.saturating_record(micros(latency));
        if latency <= USEFUL && stats.begin.elapsed() <= stats.lasts {
            stats.useful += 1;
        }
    }

    /// A delivery of what was due then.
    pub fn delivered(&self, due: Instant) {
        let latency = micros(due.elapsed());
        let mut stats = self.0.lock();
        stats.delivered += 1;
        stats.delivery.saturating_record(latency);
    }

    /// A refusal.
    pub fn refused(&self, code: &str) {
        *self.0.lock().refused.entry(code.to_owned()).or_default() += 1;
    }

    /// The counts so far.
    pub fn stats(&self) -> Stats {
        self.0.lock().clone()
    }

    /// When it began.
    pub fn began(&self) -> Instant {
        self.0.lock().begin
    }
}
