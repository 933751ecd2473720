//! Random calls of several callers at once, against a plain model: every answer must be one that some order of the calls gives.
//!
//! The calls run over the engine in memory, which lets others in between and loses answers as a schedule says, and over a real Valkey.
//! A call whose answer was lost may or may not have been done. `KITH_MODEL_CASES` sets the number of cases.

mod damage;
mod engines;
mod groups;
mod members;
mod pages;
mod rules;
mod run;
mod spec;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kith_kit::{
    config::{Auth, Cluster, Config, Durability, Kafka, Limits, Services},
    readiness::Readiness,
    valkey::Connector,
};
use kith_platform::Service;
use kith_rpc::route::Router;
use kith_testing::{ValkeyCluster, ValkeyOptions, eventually};
use proptest::{
    prelude::*,
    test_runner::{Config as Cases, TestCaseError, TestRunner},
};
use run::Caller;
use spec::{Act, Seen, Spec};
use tokio_util::sync::CancellationToken;

use crate::{
    core::Core,
    engine::{
        memory::MemoryEngine,
        valkey::{ValkeyEngine, View},
    },
    outbox::Outbox,
};

const PARTITIONS: u32 = 16;

/// Calls at once, and what the engine does meanwhile.
#[derive(Debug, Clone)]
struct Round {
    acts: Vec<Act>,
    schedule: Vec<u8>,
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let together = (proptest::collection::vec(spec::together(), 1..5), proptest::collection::vec(any::<u8>(), 0..12))
        .prop_map(|(acts, schedule)| Round { acts, schedule });
    let alone = spec::alone().prop_map(|act| Round { acts: vec![act], schedule: Vec::new() });
    proptest::collection::vec(prop_oneof![2 => together, 1 => alone], 1..16)
}

fn cases(default: u32) -> u32 {
    std::env::var("KITH_MODEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn runner(default: u32) -> TestRunner {
    TestRunner::new(Cases { cases: cases(default), failure_persistence: None, ..Cases::default() })
}

/// What calls do and answer when nothing else runs.
trait Model: Clone + Ord {
    type Act;
    type Seen: PartialEq;
    /// The answer of a call that may have been done or not.
    const UNKNOWN: Self::Seen;
    fn apply(&mut self, act: &Self::Act) -> Self::Seen;
    /// Whether a caller who should see `answer` may have seen this.
    fn fits(answer: &Self::Seen, seen: &Self::Seen) -> bool {
        answer == seen
    }
}

/// Every state that some order of `acts` leads to while giving these answers.
fn explain<M: Model>(states: &BTreeSet<M>, acts: &[M::Act], seen: &[M::Seen]) -> BTreeSet<M> {
    fn go<M: Model>(state: &M, acts: &[M::Act], seen: &[M::Seen], open: u32, found: &mut BTreeSet<M>) {
        let left = || (0..acts.len()).filter(|i| open & 1 << i != 0);
        if left().all(|i| seen[i] == M::UNKNOWN) {
            found.insert(state.clone());
        }
        for i in left() {
            let mut next = state.clone();
            let answer = next.apply(&acts[i]);
            if seen[i] == M::UNKNOWN || M::fits(&answer, &seen[i]) {
                go(&next, acts, seen, open & !(1 << i), found);
            }
        }
    }
    let mut found = BTreeSet::new();
    for state in states {
        go(state, acts, seen, (1 << acts.len()) - 1, &mut found);
    }
    found
}

async fn check(caller: &Caller, rounds: &[Round], mut prepare: impl FnMut(&[u8])) -> Result<(), TestCaseError> {
    let mut states = BTreeSet::from([Spec::new()]);
    for (at, round) in rounds.iter().enumerate() {
        prepare(&round.schedule);
        let seen = futures::future::join_all(round.acts.iter().map(|act| caller.call(act))).await;
        prepare(&[]);
        let next = explain(&states, &round.acts, &seen);
        if next.is_empty() {
            let told = round.acts.iter().zip(&seen).map(|(act, seen)| format!("\n  {act:?} -> {seen:?}"));
            let told: String = told.collect();
            return Err(TestCaseError::fail(format!("round {at}: no order of calls explains{told}\nfrom {states:?}")));
        }
        states = next;
    }
    Ok(())
}

#[test]
fn every_answer_is_one_that_some_order_of_the_calls_gives() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = runner(3_000).run(&rounds(), |rounds| {
        runtime.block_on(async {
            let engine = Arc::new(MemoryEngine::default());
            let core = Core::new(engine.clone(), PARTITIONS, Limits::default(), None);
            let caller = Caller::new(core, "u").await;
            check(&caller, &rounds, |schedule| engine.schedule(schedule.iter().copied())).await?;
            run::replays(&engine, &caller).await
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn config(valkey: &ValkeyCluster) -> Config {
    Config {
        cluster: Cluster {
            name: "model".to_owned(),
            uid: "uid-1".to_owned(),
            partitions: PARTITIONS,
            event_partitions: 4,
        },
        services: Services::all(|_| "static:127.0.0.1:1".to_owned()),
        tls: None,
        valkey: Some(valkey.config()),
        // Nobody listens there: events wait in the outbox.
        kafka: Some(Kafka {
            bootstrap: "127.0.0.1:1".to_owned(),
            tls: None,
            sasl: None,
            replication_factor: 1,
            min_insync: 1,
        }),
        auth: Auth { keys_dir: "/nonexistent".into(), token_ttl_s: 60 },
        durability: Durability::default(),
        limits: Limits::default(),
        gateway: None,
    }
}

/// A real engine, open.
async fn engine_of(config: &Config, end: &CancellationToken) -> ValkeyEngine {
    let valkey = config.valkey.clone().unwrap();
    let router = Router::new(config, Service::Storage, end.clone()).unwrap();
    let view = Arc::new(View::new(router.discovery().clone(), "127.0.0.1:1".to_owned()));
    let connector = Connector::new(config, &valkey).unwrap();
    let kafka = config.kafka.as_ref().unwrap();
    let outbox = Outbox::new(kafka, &config.cluster, config.events_topic(), 1 << 30, end.clone()).unwrap();
    let readiness = Readiness::default();
    let engine = ValkeyEngine::start(config, connector, valkey.seeds, view, outbox, readiness.clone(), end.clone());
    let opened = eventually("the partitions to be open", Duration::from_secs(20), async || readiness.is_ready()).await;
    opened.unwrap();
    engine
}

/// A real engine, open, and the runtime on which one case after the other is tried over it.
struct Real {
    engine: Arc<ValkeyEngine>,
    end: CancellationToken,
    /// Ended before the runtime is.
    _cluster: ValkeyCluster,
    runtime: tokio::runtime::Runtime,
}

impl Real {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let options = ValkeyOptions { library: Some(crate::LIBRARY.to_owned()), ..ValkeyOptions::default() };
        let end = CancellationToken::new();
        let (cluster, engine) = runtime.block_on(async {
            let cluster = ValkeyCluster::start(options).await.unwrap();
            let engine = engine_of(&config(&cluster), &end).await;
            (cluster, Arc::new(engine))
        });
        Self { engine, end, _cluster: cluster, runtime }
    }

    /// Whether so many values of `strategy` hold; each has a number of its own for its names.
    fn all_hold<S: Strategy>(
        &self,
        cases: u32,
        strategy: &S,
        holds: impl AsyncFn(u32, S::Value) -> Result<(), TestCaseError>,
    ) {
        let number = std::sync::atomic::AtomicU32::new(0);
        let outcome = runner(cases).run(strategy, |value| {
            let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.runtime.block_on(holds(number, value))
        });
        if let Err(error) = outcome {
            panic!("{error}");
        }
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

#[test]
fn a_real_valkey_answers_as_the_model_does() {
    let real = Real::start();
    // It spawns tasks.
    let core = real.runtime.block_on(async { Core::new(real.engine.clone(), PARTITIONS, Limits::default(), None) });
    real.all_hold(100, &rounds(), async |number, rounds| {
        let caller = Caller::new(core.clone(), &format!("m{number}-")).await;
        check(&caller, &rounds, |_| {}).await
    });
}

#[test]
fn an_answer_that_no_order_gives_is_found() {
    let state = BTreeSet::from([Spec::new()]);
    let append = |id, text| Act::Append { talk: spec::GROUP, by: 0, id, text };
    let stored = |seq, duplicate| Seen::Stored { seq, duplicate };
    let acts = [append(0, 0), append(1, 0)];
    assert_eq!(explain(&state, &acts, &[stored(1, false), stored(2, false)]).len(), 1);
    assert_eq!(explain(&state, &acts, &[stored(2, false), stored(1, false)]).len(), 1);
    assert!(explain(&state, &acts, &[stored(1, false), stored(1, false)]).is_empty());
    assert!(explain(&state, &acts, &[stored(1, false), stored(3, false)]).is_empty());
    // Done or not: both are possible after the first, only one order gives the second.
    assert_eq!(explain(&state, &acts, &[Seen::Unknown, stored(1, false)]).len(), 2);
    assert_eq!(explain(&state, &acts, &[Seen::Unknown, stored(2, false)]).len(), 1);
    assert!(explain(&state, &[append(0, 0)], &[stored(1, true)]).is_empty());
}
