//! Faults on the local platform under load: processes killed and frozen, primaries replaced by a stand-in for the operator.

use std::{fmt, time::Duration};

use kith_platform::Service;
use kith_testing::TestError;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::{LocalError, Platform};
use crate::{
    ledger::Report,
    load::{Load, LoadError, LoadOptions},
    wait::{TimedOut, await_until},
};

/// How long something stays frozen: longer than any deadline of a call and than the operator's patience.
const FREEZE: Duration = Duration::from_secs(10);
/// From a primary's death to its replacement: what DESIGN 3 gives the operator.
const PATIENCE: Duration = Duration::from_secs(3);
/// From the end of a fault to a whole shard and to conversations that all serve.
const HEAL: Duration = Duration::from_secs(60);
/// A run reads everything back after so many rounds, so that histories stay small.
const ROUNDS_PER_LOAD: usize = 20;

/// What is done to the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of the Valkey primary; a replica takes over.
    KillPrimary,
    /// SIGKILL of an instance of a service below access, whose clients know others.
    Kill(Service),
    /// SIGSTOP of the primary for ten seconds; it wakes up deposed.
    FreezePrimary,
    /// SIGSTOP of a storage instance for ten seconds; it wakes up fenced.
    FreezeStorage,
    /// Primary and a storage instance frozen together and both replaced: they wake up and may do no harm to each other's data.
    CutOffTogether,
    /// SIGKILL of a replica.
    KillReplica,
    /// SIGSTOP of a replica for ten seconds: its connections stand, and nothing comes or goes on them.
    CutOffReplica,
    /// Kafka stopped and started.
    RestartKafka,
    /// Kafka stopped until the outbox is full and sends are refused, then started.
    FillOutbox,
    /// SIGTERM of the gateway: a drain.
    DrainGateway,
}

impl Fault {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let others = [
            Self::KillPrimary,
            Self::FreezePrimary,
            Self::FreezeStorage,
            Self::CutOffTogether,
            Self::KillReplica,
            Self::CutOffReplica,
            Self::RestartKafka,
            Self::FillOutbox,
            Self::DrainGateway,
        ];
        let below = Service::ALL.iter().copied().filter(|service| service.is_below_access());
        others.into_iter().chain(below.map(Self::Kill)).collect()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill(service) => return write!(f, "{} killed", service.name()),
            Self::KillPrimary => "primary killed",
            Self::FreezePrimary => "primary frozen",
            Self::FreezeStorage => "storage frozen",
            Self::CutOffTogether => "primary and holder frozen",
            Self::KillReplica => "replica killed",
            Self::CutOffReplica => "replica cut off",
            Self::RestartKafka => "Kafka restarted",
            Self::FillOutbox => "outbox filled",
            Self::DrainGateway => "gateway drained",
        })
    }
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// The platform's processes.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// Valkey or Kafka.
    #[error(transparent)]
    Test(#[from] TestError),
    /// The load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It did not heal.
    #[error("after {fault}: {source}")]
    NotHealed {
        /// The fault.
        fault: Fault,
        /// What did not come.
        source: TimedOut,
    },
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Run {
    /// Faults, one after the other; each waits until the one before has healed.
    pub rounds: usize,
    /// Those to choose from; every one comes before any comes again.
    pub faults: Vec<Fault>,
    /// Order of the faults.
    pub seed: u64,
    /// The load meanwhile.
    pub load: LoadOptions,
}

/// Injects the faults under load and reads everything back. One report for every twenty rounds.
pub async fn fault_run(platform: &mut Platform, run: &Run) -> Result<Vec<Report>, FaultError> {
    let mut random = StdRng::seed_from_u64(run.seed);
    let mut reports = Vec::new();
    let mut queue: Vec<Fault> = Vec::new();
    let target = platform.target().await?;
    let mut done = 0;
    while done < run.rounds {
        let load = Load::start(&target, run.load.clone()).await?;
        for _ in 0..ROUNDS_PER_LOAD.min(run.rounds - done) {
            if queue.is_empty() {
                queue.clone_from(&run.faults);
                queue.shuffle(&mut random);
            }
            let Some(fault) = queue.pop() else { return Ok(reports) };
            let healed = |source| FaultError::NotHealed { fault, source };
            load.all_serve(HEAL).await.map_err(healed)?;
            load.ledger().injected(&fault.to_string());
            platform.inject(fault, done).await?;
            platform.await_whole(HEAL).await.map_err(healed)?;
            load.all_serve(HEAL).await.map_err(healed)?;
            done += 1;
        }
        reports.push(load.finish(HEAL).await?);
    }
    Ok(reports)
}

impl Platform {
    /// Does it, and puts right what only a person or an operator would: dead processes are started again, a dead primary's
    /// replica is promoted.
    pub async fn inject(&mut self, fault: Fault, round: usize) -> Result<(), FaultError> {
        match fault {
            Fault::KillPrimary => {
                let dead = self.valkey.kill_primary(0).await?;
                tokio::time::sleep(PATIENCE).await;
                self.valkey.promote(0).await?;
                self.valkey.node(0, dead).restart().await?;
            }
            Fault::CutOffReplica => {
                let replica = self.replica().await?;
                self.valkey.node(0, replica).process().pause()?;
                tokio::time::sleep(FREEZE).await;
                self.valkey.node(0, replica).process().resume()?;
            }
            Fault::KillReplica => {
                let replica = self.replica().await?;
                self.valkey.node(0, replica).process().kill()?;
                self.valkey.node(0, replica).restart().await?;
            }
            Fault::FreezePrimary => {
                let frozen = self.valkey.primary(0).await?;
                self.valkey.node(0, frozen).process().pause()?;
                tokio::time::sleep(PATIENCE).await;
                self.valkey.promote(0).await?;
                tokio::time::sleep(FREEZE.saturating_sub(PATIENCE)).await;
                self.valkey.node(0, frozen).process().resume()?;
            }
            Fault::Kill(service) => self.kill_and_restart(service, round).await?,
            Fault::FreezeStorage => {
                let at = self.pick(Service::Storage, round);
                self.freeze(at)?;
                self.unseen(at).await?;
                self.thaw(at)?;
                self.set_published(at, true)?;
            }
            Fault::CutOffTogether => {
                let at = self.pick(Service::Storage, round);
                let frozen = self.valkey.primary(0).await?;
                self.freeze(at)?;
                self.valkey.node(0, frozen).process().pause()?;
                self.unseen(at).await?;
                self.valkey.promote(0).await?;
                self.thaw(at)?;
                self.valkey.node(0, frozen).process().resume()?;
                self.set_published(at, true)?;
            }
            Fault::RestartKafka => self.kafka.restart().await?,
            Fault::FillOutbox => {
                self.kafka.stop().await?;
                let full = self.await_full_outbox(HEAL).await;
                self.kafka.restart().await?;
                full.map_err(|source| FaultError::NotHealed { fault, source })?;
            }
            Fault::DrainGateway => {
                let at = self.pick(Service::Gateway, 0);
                self.stop(at).await?;
                self.restart(at).await?;
            }
        }
        Ok(())
    }

    async fn replica(&self) -> Result<usize, TestError> {
        Ok((self.valkey.primary(0).await? + 1) % self.valkey.nodes(0).len())
    }

    /// Waits until an instance of storage holds as much unpublished as it may.
    async fn await_full_outbox(&self, deadline: Duration) -> Result<(), TimedOut> {
        let bound = self.options.limits.outbox_bytes as f64;
        await_until("a full outbox", deadline, || async {
            let mut fullest = 0.0_f64;
            for at in (0..self.count(Service::Storage)).filter_map(|index| self.find(Service::Storage, index)) {
                fullest = fullest.max(self.instance(at).metric("kith_storage_outbox_bytes").await.unwrap_or(0.0));
            }
            if fullest >= bound { Ok(()) } else { Err(format!("{fullest:.0} of {bound:.0} bytes")) }
        })
        .await
    }

    fn pick(&self, service: Service, round: usize) -> usize {
        self.find(service, round % self.count(service).max(1)).unwrap_or_default()
    }

    async fn kill_and_restart(&mut self, service: Service, round: usize) -> Result<(), LocalError> {
        let at = self.pick(service, round);
        self.kill(at)?;
        self.restart(at).await
    }

    /// Ten seconds of which the readiness probe notices after the first three.
    async fn unseen(&mut self, at: usize) -> Result<(), LocalError> {
        tokio::time::sleep(PATIENCE).await;
        self.set_published(at, false)?;
        tokio::time::sleep(FREEZE.saturating_sub(PATIENCE)).await;
        Ok(())
    }

    /// Waits until the shard has one primary and all others follow it.
    pub async fn await_whole(&self, deadline: Duration) -> Result<(), TimedOut> {
        await_until("one primary and all replicas in step", deadline, || async {
            let mut primaries = 0;
            for node in self.valkey.nodes(0) {
                if node.offset().await.is_none() {
                    return Err(format!("{} does not answer", node.address()));
                }
                primaries += usize::from(node.is_primary().await);
            }
            if primaries != 1 {
                return Err(format!("{primaries} primaries"));
            }
            self.valkey.synced(0).await.map_err(|e| e.to_string())
        })
        .await
    }
}
