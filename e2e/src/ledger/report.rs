//! The result of a run as a table.

use std::{collections::BTreeMap, fmt, time::Duration};

/// What was tried, promised and found.
#[derive(Debug, Clone)]
pub struct Report {
    /// Faults injected, by name.
    pub injected: BTreeMap<String, u64>,
    /// Messages acknowledged.
    pub acknowledged: u64,
    /// Messages whose sender got no answer before its deadline.
    pub given_up: u64,
    /// Tries that failed and were repeated, by code.
    pub failed_tries: BTreeMap<String, u64>,
    /// Conversations read back.
    pub conversations_checked: u64,
    /// Acknowledged and not in history at the seq that was returned.
    pub lost: u64,
    /// Twice in history, or two messages at one place.
    pub doubled: u64,
    /// Acknowledged in another order than sent.
    pub reordered: u64,
    /// Conversations whose seqs are not 1..n.
    pub gaps: u64,
    /// In history and never shown to a member's device.
    pub undelivered: u64,
    /// Differences between the event log and the store.
    pub log_differences: u64,
    /// The longest time in which a conversation took no message.
    pub longest_refusal: Duration,
    /// Which.
    pub longest_refusal_of: String,
    /// From the moment a message was meant to be sent to its acknowledgement.
    pub p50: Duration,
    /// The same.
    pub p99: Duration,
    /// The same.
    pub p999: Duration,
    /// The same: the longest of all.
    pub slowest: Duration,
    /// How it went after each kind of fault or change, until the next one.
    pub after: BTreeMap<String, String>,
    /// When what was injected, and when acknowledgements took more than half a second.
    pub course: Vec<String>,
    /// Some of what is wrong.
    pub examples: Vec<String>,
}

impl Report {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.lost + self.doubled + self.reordered + self.gaps + self.undelivered + self.log_differences == 0
    }

    /// Tries that failed, for each message that was acknowledged.
    pub fn failed_share(&self) -> f64 {
        self.failed_tries.values().sum::<u64>() as f64 / self.acknowledged.max(1) as f64
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<28} {value}");
        let list = |map: &BTreeMap<String, u64>| {
            map.iter().map(|(name, count)| format!("{name} × {count}")).collect::<Vec<_>>().join(", ")
        };
        let total: u64 = self.injected.values().sum();
        row("faults injected", format!("{total}  {}", list(&self.injected)))?;
        row("messages acknowledged", self.acknowledged.to_string())?;
        row("conversations read back", self.conversations_checked.to_string())?;
        row("lost", self.lost.to_string())?;
        row("doubled", self.doubled.to_string())?;
        row("reordered", self.reordered.to_string())?;
        row("gaps in seq", self.gaps.to_string())?;
        row("not delivered", self.undelivered.to_string())?;
        row("event log differs", self.log_differences.to_string())?;
        let tries: u64 = self.failed_tries.values().sum();
        let share = 100.0 * self.failed_share();
        row("tries repeated", format!("{tries} ({share:.3} %)  {}", list(&self.failed_tries)))?;
        row("given up", self.given_up.to_string())?;
        row("longest refusal", format!("{:.2} s  {}", self.longest_refusal.as_secs_f64(), self.longest_refusal_of))?;
        let ms = |d: Duration| format!("{:.1}", d.as_secs_f64() * 1_000.0);
        row("ack p50 / p99 / p99.9", format!("{} / {} / {} ms", ms(self.p50), ms(self.p99), ms(self.p999)))?;
        row("slowest ack", format!("{} ms", ms(self.slowest)))?;
        for (cause, told) in &self.after {
            row(cause, told.clone())?;
        }
        for line in &self.course {
            row("", line.clone())?;
        }
        for example in &self.examples {
            writeln!(f, "  ! {example}")?;
        }
        Ok(())
    }
}
