//! What a run cost: CPU seconds of every process and memory of the engine.

use std::{
    fmt,
    time::{Duration, Instant},
};

use kith_platform::Service;

use crate::{
    local::{Platform, cpu_of},
    wait::await_until,
};

use super::BenchError;

/// Rewriting an append-only file.
const REWRITE: Duration = Duration::from_secs(60);
/// Memory that has not fallen for so long has settled: outboxes of partitions that went quiet are trimmed every five seconds. After so long it
/// is given up.
const SETTLED: Duration = Duration::from_secs(7);
const SETTLES: Duration = Duration::from_secs(60);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(200);

/// CPU time by part, at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Cpu(Vec<(String, Duration)>);

impl Cpu {
    /// Of all processes of the platform, and of this one.
    pub(super) fn now(platform: &mut Platform) -> Self {
        let mut parts = platform.cpu();
        for index in 0..platform.valkey.nodes(0).len() {
            let pid = platform.valkey.node(0, index).process().pid();
            parts.extend(cpu_of(pid).map(|cpu| (format!("valkey-{index}"), cpu)));
        }
        parts.extend(cpu_of(platform.kafka.process().pid()).map(|cpu| ("kafka".to_owned(), cpu)));
        parts.extend(cpu_of(std::process::id()).map(|cpu| ("this client".to_owned(), cpu)));
        Self(parts)
    }

    /// What was used since `earlier`, per million of `messages`.
    pub(super) fn per_million(&self, earlier: &Self, messages: u64) -> Cost {
        let used = self.0.iter().map(|(name, now)| {
            let before = earlier.0.iter().find(|(other, _)| other == name).map_or(Duration::ZERO, |(_, d)| *d);
            (name.clone(), now.saturating_sub(before).as_secs_f64() * 1e6 / messages.max(1) as f64)
        });
        Cost(used.collect())
    }
}

/// CPU seconds per million messages, by part.
#[derive(Debug, Clone)]
pub(super) struct Cost(Vec<(String, f64)>);

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let platform: f64 = self.0.iter().filter(|(name, _)| name != "this client").map(|(_, s)| s).sum();
        let parts: Vec<String> = self.0.iter().map(|(name, s)| format!("{name} {s:.0}")).collect();
        write!(f, "  CPU seconds per million messages: {platform:.0} ({})", parts.join(", "))
    }
}

/// Rewrites the append-only files of all nodes, which is due now and then and takes both cores for seconds: in none of the phases that are
/// compared, instead of in some by chance.
pub(super) async fn rewrite_logs(platform: &Platform) -> Result<(), BenchError> {
    for node in platform.valkey.nodes(0) {
        match node.command(&["BGREWRITEAOF"]).await {
            // One that is due is under way already.
            Err(error) if error.to_string().contains("already in progress") => {}
            asked => drop(asked?),
        }
    }
    for node in platform.valkey.nodes(0) {
        let rewritten = || async {
            let info = node.command(&["INFO", "persistence"]).await.map_err(|e| e.to_string())?;
            let text = redis::from_redis_value::<String>(info).map_err(|e| e.to_string())?;
            let busy = ["aof_rewrite_in_progress:1", "aof_rewrite_scheduled:1"];
            match busy.iter().find(|state| text.contains(*state)) {
                None => Ok(()),
                Some(state) => Err((*state).to_owned()),
            }
        };
        await_until("the append-only file to be rewritten", REWRITE, rewritten)
            .await
            .map_err(|e| BenchError::Engine(e.to_string()))?;
    }
    Ok(())
}

/// The primary's memory in use for data once nothing falls away any more: events that Kafka has not taken yet are trimmed soon.
pub(super) async fn settled_memory(platform: &Platform) -> Result<u64, BenchError> {
    let begun = Instant::now();
    let (mut least, mut since) = (engine_memory(platform).await?, Instant::now());
    while since.elapsed() < SETTLED {
        if begun.elapsed() > SETTLES {
            return Err(BenchError::Engine(format!("memory did not settle within {SETTLES:?}")));
        }
        tokio::time::sleep(LOOK).await;
        let now = engine_memory(platform).await?;
        // A background task of the engine takes and gives back some pages all the time.
        if now + least / 1_000 < least {
            (least, since) = (now, Instant::now());
        }
    }
    Ok(least)
}

/// The primary's memory in use for data: without what it holds for its replicas, which is bounded and fills up first.
async fn engine_memory(platform: &Platform) -> Result<u64, BenchError> {
    let primary = platform.valkey.primary(0).await?;
    let info = platform.valkey.nodes(0)[primary].command(&["INFO", "memory"]).await?;
    let text = redis::from_redis_value::<String>(info).map_err(|e| BenchError::Engine(e.to_string()))?;
    let field = |name: &str| {
        let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        let value = value.and_then(|v| v.trim().parse::<u64>().ok());
        value.ok_or_else(|| BenchError::Engine(format!("INFO memory without {name}")))
    };
    Ok(field("used_memory")?.saturating_sub(field("mem_total_replication_buffers")?))
}

/// Resident memory of the storage processes in MB.
pub(super) fn storage_memory(platform: &Platform) -> Vec<f64> {
    let all = (0..platform.count(Service::Storage)).filter_map(|index| platform.find(Service::Storage, index));
    all.filter_map(|at| platform.memory(at)).map(|bytes| bytes as f64 / f64::from(1 << 20)).collect()
}
