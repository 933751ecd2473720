//! Faults on the local processes under load: every acknowledged message is there once with its seq, seqs are gapless, the event log
//! replays to the store, no conversation stays closed. `KITH_FAULT_ROUNDS` sets how many (`make nightly`: 200).

use kith_e2e::{
    load::{LoadOptions, Via},
    local::{Fault, Options, Platform, Run, fault_run},
};
use kith_platform::Service;

fn rounds() -> usize {
    std::env::var("KITH_FAULT_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

async fn survive(faults: &[Fault], rounds: usize, via: Via) {
    // Two replicas: with k = 1 a primary's death still leaves R − k + 1 = 2 in sight.
    let mut options = Options { replicas: 2, log: "warn".to_owned(), ..Options::default() };
    // Full within seconds at this load.
    options.limits.outbox_bytes = 256 << 10;
    let mut platform = Platform::start(options).await.expect("the local platform");
    let seed = std::env::var("KITH_FAULT_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or_else(rand::random);
    println!("seed {seed}");
    let load = LoadOptions { pairs: 10, rate: 100.0, via, ..LoadOptions::default() };
    let run = Run { rounds, faults: faults.to_vec(), seed, load };
    let reports = fault_run(&mut platform, &run).await.unwrap_or_else(|e| panic!("{e}"));
    for report in &reports {
        println!("{report}");
    }
    assert!(reports.iter().all(kith_e2e::ledger::Report::is_clean), "promises were broken");
    assert!(reports.iter().all(|r| r.acknowledged > 0 && r.given_up == 0), "senders gave up");
}

/// The three that touch the store's own promises, in every run of the tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_messages_survive_a_killed_primary_a_killed_and_a_frozen_holder() {
    survive(&[Fault::KillPrimary, Fault::Kill(Service::Storage), Fault::CutOffTogether], 3, Via::Http).await;
}

/// All faults; as many rounds as asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: make nightly runs it with KITH_FAULT_ROUNDS=200"]
async fn acknowledged_messages_survive_every_fault_many_times() {
    let all = Fault::all();
    survive(&all, rounds().max(all.len()), Via::Socket).await;
}
