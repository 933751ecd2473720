//! The client's side of a repair, for the command line: finds out which partitions need one, asks their holders, and says in words what
//! came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use futures::{StreamExt, future::join_all, stream};
use kith_kit::config::Config;
use kith_platform::Service;
use kith_proto::storage::v1::{Partition, PartitionsRequest, RepairRequest, RepairResponse, peer_client::PeerClient};
use kith_rpc::{
    error::{Error, reason},
    route::{RouteError, Router},
};
use thiserror::Error as ThisError;
use tokio_util::sync::CancellationToken;

/// Until an instance is found.
const DISCOVERY: Duration = Duration::from_secs(10);
/// What an instance may take to say how its partitions stand.
const ANSWER: Duration = Duration::from_secs(5);
/// A little more than a repair may take.
const REPAIR: Duration = Duration::from_secs(31 * 60);
/// Repairs at once; each reads the event log by itself.
const AT_ONCE: usize = 4;
/// Instances asked for one partition: hints to its holder are followed.
const HOPS: usize = 8;
/// Items of a list that are written out.
const WRITTEN: usize = 20;

/// Which partitions, and how.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// These; empty: those that are known to have lost something.
    pub partitions: Vec<u32>,
    /// All: each is compared with the event log.
    pub all: bool,
    /// Nothing is written.
    pub dry_run: bool,
}

/// Why nothing was asked.
#[derive(Debug, ThisError)]
pub enum CommandError {
    /// How instances are found and called.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// None is ready.
    #[error("no storage instance was found at {endpoints} within {} s", DISCOVERY.as_secs())]
    NoInstance {
        /// Where they were looked for.
        endpoints: String,
    },
    /// A number outside the configuration.
    #[error("partition {0}: there are {1}, from 0 on")]
    NoPartition(u32, u32),
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Summary {
    dry_run: bool,
    /// Partitions that were asked for by name are told even when nothing is wrong with them.
    named: bool,
    outcomes: BTreeMap<u32, Result<RepairResponse, Error>>,
    /// Instances that did not answer: what they know is not known.
    silent: Vec<String>,
}

/// What instances say of each partition.
type Words = BTreeMap<u32, Vec<(String, Partition)>>;

/// Repairs what is wished.
pub async fn repair(config: &Config, wish: &Wish) -> Result<Summary, CommandError> {
    let count = config.cluster.partitions;
    if let Some(wrong) = wish.partitions.iter().find(|p| **p >= count) {
        return Err(CommandError::NoPartition(*wrong, count));
    }
    let end = CancellationToken::new();
    let _ends = end.clone().drop_guard();
    let router = Router::new(config, Service::Storage, end)?;
    let mut watch = router.discovery().watch();
    let found = tokio::time::timeout(DISCOVERY, watch.wait_for(|found| !found.is_empty())).await;
    let instances = match found {
        Ok(Ok(found)) => found.clone(),
        _ => {
            let found = config.services.get(Service::Storage).map(|service| service.endpoints.clone());
            return Err(CommandError::NoInstance { endpoints: found.unwrap_or_default() });
        }
    };
    let mut summary = Summary { dry_run: wish.dry_run, named: !wish.partitions.is_empty(), ..Summary::default() };
    let mut words = Words::new();
    let asked = instances.iter().map(|address| partitions(&router, address, count));
    for (address, answer) in instances.iter().zip(join_all(asked).await) {
        match answer {
            Ok(partitions) => {
                for partition in partitions {
                    words.entry(partition.partition).or_default().push((address.clone(), partition));
                }
            }
            Err(error) => summary.silent.push(format!("{address}: {error}")),
        }
    }
    let wanted = wanted(wish, count, &words);
    let repairs = wanted.into_iter().map(|number| {
        let request =
            RepairRequest { partition: number, dry_run: wish.dry_run, acknowledged_ver: acknowledged(number, &words) };
        let addresses = candidates(number, &words, &instances);
        let router = &router;
        async move { (number, one(router, addresses, request).await) }
    });
    summary.outcomes = stream::iter(repairs).buffer_unordered(AT_ONCE).collect().await;
    Ok(summary)
}

async fn partitions(router: &Router, address: &str, count: u32) -> Result<Vec<Partition>, Error> {
    let mut client = PeerClient::new(router.dialer().channel(address));
    let mut request = tonic::Request::new(PartitionsRequest { partitions: (0..count).collect() });
    request.set_timeout(ANSWER);
    match tokio::time::timeout(ANSWER, client.partitions(request)).await {
        Ok(answer) => Ok(answer?.into_inner().partitions),
        Err(_) => Err(Error::unavailable("does not answer in time")),
    }
}

fn all_of(number: u32, words: &Words) -> impl Iterator<Item = (&str, &Partition)> {
    words.get(&number).into_iter().flatten().map(|(address, partition)| (address.as_str(), partition))
}

/// The highest version that any instance has seen committed.
fn acknowledged(number: u32, words: &Words) -> u64 {
    all_of(number, words).map(|(_, p)| p.ver).max().unwrap_or(0)
}

/// The partitions to look at: those that are wished, else those that are closed, and those of which another instance has seen more committed
/// than their holder has.
fn wanted(wish: &Wish, count: u32, words: &Words) -> BTreeSet<u32> {
    if wish.all {
        return (0..count).collect();
    }
    if !wish.partitions.is_empty() {
        return wish.partitions.iter().copied().collect();
    }
    let lost = |number: &u32| {
        let closed = all_of(*number, words).any(|(_, p)| matches!(p.state.as_str(), "data_loss" | "repairing"));
        let holder = all_of(*number, words).find(|(_, p)| p.state == "open").map(|(_, p)| p.ver);
        closed || holder.is_some_and(|ver| ver < acknowledged(*number, words))
    };
    (0..count).filter(lost).collect()
}

/// Whom to ask first: who has found the loss, then who holds the partition.
fn candidates(number: u32, words: &Words, instances: &[String]) -> Vec<String> {
    let mut known: Vec<(u8, &str)> = all_of(number, words)
        .map(|(address, p)| match p.state.as_str() {
            "data_loss" | "repairing" => (0, address),
            "open" => (1, address),
            _ => (2, address),
        })
        .collect();
    known.sort_unstable();
    let mut addresses: Vec<String> = known.into_iter().map(|(_, address)| address.to_owned()).collect();
    let unheard: Vec<String> = instances.iter().filter(|i| !addresses.contains(*i)).cloned().collect();
    addresses.extend(unheard);
    addresses
}

async fn one(router: &Router, mut addresses: Vec<String>, request: RepairRequest) -> Result<RepairResponse, Error> {
    addresses.reverse();
    let mut last = Error::unavailable("no instance could be asked");
    for _ in 0..HOPS {
        let Some(address) = addresses.pop() else { break };
        let mut client = PeerClient::new(router.dialer().channel(&address));
        let mut asked = tonic::Request::new(request);
        asked.set_timeout(REPAIR);
        let error = match tokio::time::timeout(REPAIR, client.repair(asked)).await {
            Ok(Ok(report)) => return Ok(report.into_inner()),
            Ok(Err(status)) => Error::from(status),
            Err(_) => {
                return Err(Error::unavailable("the holder does not answer: whether it is repaired is not known"));
            }
        };
        if error.reason.as_deref() != Some(reason::WRONG_HOLDER) {
            return Err(error);
        }
        if let Some(holder) = error.metadata.get("holder").filter(|h| **h != address) {
            addresses.push(holder.clone());
        }
        last = error;
    }
    Err(last)
}

/// Whether a report leaves nothing to be desired.
fn is_whole(report: &RepairResponse) -> bool {
    let lost = report.missing_count + report.unrestored_count + report.seq_gap_count + report.conflict_count;
    lost == 0 && report.state == "open" && report.ver >= report.acknowledged_ver.max(report.log_ver)
}

impl Summary {
    /// Whether every partition that was looked at is open and has lost nothing, and every instance has answered.
    pub fn is_whole(&self) -> bool {
        self.silent.is_empty() && self.outcomes.values().all(|o| o.as_ref().is_ok_and(is_whole))
    }

    /// The reports by partition, or why there is none.
    pub fn outcomes(&self) -> &BTreeMap<u32, Result<RepairResponse, Error>> {
        &self.outcomes
    }
}

/// A table in which every column is as wide as its widest cell.
fn table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|r| r.get(at)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(f, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn runs(ranges: impl Iterator<Item = (u64, u64)>, count: usize) -> String {
    let mut words: Vec<String> = ranges
        .take(WRITTEN)
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    if count > words.len() {
        words.push(format!("and {} more", count - words.len()));
    }
    words.join(", ")
}

fn details(f: &mut fmt::Formatter<'_>, report: &RepairResponse) -> fmt::Result {
    let partition = report.partition;
    if report.missing_count > 0 {
        let lost = runs(report.missing.iter().map(|r| (r.first, r.last)), report.missing.len());
        writeln!(
            f,
            "partition {partition}: {} versions are not on the event log and are lost: {lost}",
            report.missing_count
        )?;
    }
    for gap in report.seq_gaps.iter().take(WRITTEN) {
        writeln!(f, "partition {partition}: {} has lost seqs {}-{}", gap.conversation_id, gap.first, gap.last)?;
    }
    for event in report.unrestored.iter().take(WRITTEN) {
        writeln!(f, "partition {partition}: version {} could not be restored: {}", event.ver, event.why)?;
    }
    if report.conflict_count > 0 {
        let vers = runs(report.conflicts.iter().map(|v| (*v, *v)), report.conflict_count as usize);
        writeln!(
            f,
            "partition {partition}: the count went back: versions told in two ways, the first was taken: {vers}"
        )?;
    }
    for record in report.unreadable.iter().take(WRITTEN) {
        writeln!(f, "partition {partition}: the record at offset {} is no event: {}", record.offset, record.why)?;
    }
    Ok(())
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for silent in &self.silent {
            writeln!(f, "a storage instance could not be asked: {silent}")?;
        }
        let head =
            ["PARTITION", "STATE", "STORED", "ACKNOWLEDGED", "ON LOG", "RESTORED", "MISSING", "UNRESTORED", "NOW"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for (number, outcome) in &self.outcomes {
            match outcome {
                Ok(r) if self.named || r.restored > 0 || !is_whole(r) || r.ver != r.stored_ver => rows.push(vec![
                    number.to_string(),
                    r.state.clone(),
                    r.stored_ver.to_string(),
                    r.acknowledged_ver.to_string(),
                    r.log_ver.to_string(),
                    r.restored.to_string(),
                    r.missing_count.to_string(),
                    r.unrestored_count.to_string(),
                    r.ver.to_string(),
                ]),
                _ => {}
            }
        }
        if rows.len() > 1 {
            table(f, &rows)?;
        }
        for (number, outcome) in &self.outcomes {
            if let Err(error) = outcome {
                writeln!(f, "partition {number}: not repaired: {}", error.detail)?;
            }
        }
        for report in self.outcomes.values().flatten() {
            details(f, report)?;
        }
        let whole = self.outcomes.values().filter(|o| o.as_ref().is_ok_and(is_whole)).count();
        let (all, dry) = (self.outcomes.len(), if self.dry_run { " (dry run: nothing was written)" } else { "" });
        match all {
            0 => writeln!(
                f,
                "no partition is known to have lost anything{dry}; --all compares every one with the event log"
            ),
            _ => writeln!(f, "{whole} of {all} partitions are whole{dry}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: u32, state: &str, ver: u64) -> Partition {
        Partition { partition: number, state: state.to_owned(), ver, ..Partition::default() }
    }

    fn words() -> Words {
        let said = [[("open", 9), ("closed", 4)], [("data_loss", 7), ("closed", 0)], [("closed", 8), ("open", 5)]];
        (0..)
            .zip(said)
            .map(|(number, by)| {
                let of = |(name, (state, ver)): (&str, (&str, u64))| (name.to_owned(), partition(number, state, ver));
                (number, ["a", "b"].into_iter().zip(by).map(of).collect())
            })
            .collect()
    }

    #[test]
    fn partitions_are_wanted_that_are_closed_or_of_which_another_instance_has_seen_more() {
        assert_eq!(wanted(&Wish::default(), 3, &words()), BTreeSet::from([1, 2]));
        assert_eq!(wanted(&Wish { partitions: vec![0], ..Wish::default() }, 3, &words()), BTreeSet::from([0]));
        assert_eq!(wanted(&Wish { all: true, ..Wish::default() }, 3, &words()).len(), 3);
        assert_eq!(acknowledged(2, &words()), 8);
        let instances = ["a".to_owned(), "b".to_owned(), "silent".to_owned()];
        assert_eq!(candidates(2, &words(), &instances), ["b", "a", "silent"]);
    }

    #[test]
    fn a_summary_is_whole_only_without_a_loss_and_says_what_is_lost() {
        let whole = RepairResponse {
            partition: 3,
            state: "open".to_owned(),
            ver: 9,
            log_ver: 9,
            restored: 4,
            ..RepairResponse::default()
        };
        let mut summary = Summary::default();
        assert!(summary.is_whole() && summary.to_string().contains("--all"));
        summary.outcomes.insert(3, Ok(whole.clone()));
        assert!(summary.is_whole() && summary.to_string().contains("1 of 1 partitions are whole"), "{summary}");
        let missing = vec![kith_proto::storage::v1::VersionRange { first: 5, last: 6 }];
        summary.outcomes.insert(4, Ok(RepairResponse { partition: 4, missing, missing_count: 2, ..whole }));
        summary.outcomes.insert(5, Err(Error::unavailable("no")));
        let text = summary.to_string();
        assert!(
            !summary.is_whole()
                && text.contains("2 versions")
                && text.contains("5-6")
                && text.contains("not repaired: no"),
            "{text}"
        );
    }
}
