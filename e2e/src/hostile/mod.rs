//! The hostile-client run: one user on one address tries everything that could hurt others, at full rate, while others chat. Afterwards
//! every promise to the others is held against what was kept, and the processes must be the same, within their memory.

mod attack;
mod calls;
mod raw;
mod socket;
mod tally;

use std::{
    fmt,
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

pub use attack::Attack;
pub use tally::Tally;

use self::attack::Attacker;
use crate::{
    client::{ClientError, DeviceOptions, Draft},
    ledger::Report,
    load::{Load, LoadError, LoadOptions},
    target::{Target, TargetError},
    wait::TimedOut,
};

/// What goes before the attacks starts when everyone is served.
const SERVED: Duration = Duration::from_secs(60);
/// Between two looks at the processes.
const WATCH: Duration = Duration::from_secs(1);
/// Reading everything back.
const READ_BACK: Duration = Duration::from_secs(120);
/// How long a call of somebody new may take right after the attacks.
const AFTERWARDS: Duration = Duration::from_secs(20);

/// What is done.
#[derive(Debug, Clone)]
pub struct HostileOptions {
    /// What is tried, all at once.
    pub attacks: Vec<Attack>,
    /// How long others chat undisturbed first: the measure.
    pub calm: Duration,
    /// How long the attacks last.
    pub lasts: Duration,
    /// The attacker's own address.
    pub from: IpAddr,
    /// Connections that the attacker opens to each door and leaves silent.
    pub silent: usize,
    /// The others.
    pub load: LoadOptions,
}

impl Default for HostileOptions {
    fn default() -> Self {
        Self {
            attacks: Attack::ALL.to_vec(),
            calm: Duration::from_secs(20),
            lasts: Duration::from_secs(60),
            from: IpAddr::from([127, 0, 0, 66]),
            silent: 4_000,
            load: LoadOptions { pairs: 10, bystanders: 10, rate: 40.0, ..LoadOptions::default() },
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What the others were promised and got.
    pub report: Report,
    /// The others' p99 without the attacks, and amid them.
    pub calm_p99: Duration,
    /// The same amid the attacks.
    pub attacked_p99: Duration,
    /// What the attacker was answered.
    pub tally: Tally,
    /// What was wrong with the processes, each once.
    pub ailments: Vec<String>,
}

impl Outcome {
    /// Whether the others got all that they were promised and every process lived within its bounds. Times are told, not judged.
    pub fn is_clean(&self) -> bool {
        self.report.is_clean() && self.report.given_up == 0 && self.ailments.is_empty()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.report)?;
        let ms = |d: Duration| d.as_secs_f64() * 1_000.0;
        let ratio = self.attacked_p99.as_secs_f64() / self.calm_p99.as_secs_f64().max(1e-6);
        let (calm, attacked) = (ms(self.calm_p99), ms(self.attacked_p99));
        writeln!(f, "  others' ack p99: calm {calm:.1} ms, amid the attacks {attacked:.1} ms: {ratio:.1} times")?;
        write!(f, "{}", self.tally)?;
        for ailment in &self.ailments {
            writeln!(f, "  ailment: {ailment}")?;
        }
        Ok(())
    }
}

/// Why a run could not be carried through.
#[derive(Debug, thiserror::Error)]
pub enum HostileError {
    /// The others.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Users and their tokens.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A call before or after the attacks.
    #[error("beside the attacks: {0}")]
    Client(#[from] ClientError),
    /// What was awaited.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// The thread of the attacker.
    #[error("the attacker could not start: {0}")]
    Thread(#[from] std::io::Error),
    /// The attacker died.
    #[error("the attacker ended by itself")]
    Died,
}

/// The whole run. `look` says what is wrong with the platform's processes now; it is asked again and again.
pub async fn run(
    target: &Target,
    options: &HostileOptions,
    look: impl AsyncFn() -> Vec<String>,
) -> Result<Outcome, HostileError> {
    let attacker = Attacker::new(target, options).await?;
    let load = Load::start(target, options.load.clone()).await?;
    load.all_serve(SERVED).await?;
    load.ledger().injected("calm");
    tokio::time::sleep(options.calm).await;
    load.ledger().injected("attacks");
    let stop = CancellationToken::new();
    let attacking = attacker.start(options.attacks.clone(), stop.clone())?;
    let mut ailments: Vec<String> = Vec::new();
    let end = Instant::now() + options.lasts;
    while Instant::now() < end {
        tokio::time::sleep(WATCH).await;
        for found in look().await {
            if !ailments.contains(&found) {
                tracing::warn!(ailment = found, "amid the attacks");
                ailments.push(found);
            }
        }
    }
    stop.cancel();
    let attacker = tokio::task::spawn_blocking(move || attacking.join())
        .await
        .map_err(|_| HostileError::Died)?
        .map_err(|_| HostileError::Died)?;
    load.ledger().injected("after the attacks");
    somebody_new(target).await?;
    attacker.can_get_out().await?;
    load.all_serve(SERVED).await?;
    let p99 = |when: &str| load.ledger().p99_after(when).unwrap_or_default();
    let (calm_p99, attacked_p99) = (p99("calm"), p99("attacks"));
    let report = load.finish(READ_BACK).await?;
    ailments.extend(look().await);
    ailments.sort_unstable();
    ailments.dedup();
    Ok(Outcome { report, calm_p99, attacked_p99, tally: attacker.tally(), ailments })
}

/// Somebody who comes now is served at once.
async fn somebody_new(target: &Target) -> Result<(), HostileError> {
    let (alice, bob) = (target.new_user("alice").await?, target.new_user("bob").await?);
    let device = target.device(&bob, DeviceOptions::default()).await?;
    let sent = alice.api.send_until_stored(&Draft::to(&bob.id, "all well?"), AFTERWARDS).await?;
    device
        .until("a message after the attacks", AFTERWARDS, |inbox| inbox.get(&sent.conversation_id, 1).map(drop))
        .await?;
    Ok(())
}
