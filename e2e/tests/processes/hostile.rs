//! A hostile client on the local processes: one user on one address tries everything at full rate while others chat. `KITH_HOSTILE_SECONDS`
//! sets for how long.

use std::time::Duration;

use kith_e2e::{
    hostile::{self, HostileOptions},
    local::{Instances, Options, Platform},
};
use kith_platform::Service;

/// What the sample gives each of these pods.
const MEMORY: u64 = 256 << 20;

/// What is wrong with the processes now.
fn look(platform: &Platform, began: &[(usize, Option<u32>)]) -> Vec<String> {
    let mut found = Vec::new();
    for (at, pid) in began {
        let instance = platform.instance(*at);
        // A process that has ended holds no memory.
        match platform.memory(*at).filter(|_| instance.pid() == *pid) {
            None => found.push(format!("{instance} has ended")),
            Some(bytes) if bytes > MEMORY => found.push(format!("{instance} holds more than {} MiB", MEMORY >> 20)),
            Some(_) => {}
        }
        if instance.log().contains("panicked at") {
            found.push(format!("{instance} panicked"));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the cluster's test does the same; here for make nightly and for people"]
async fn one_hostile_client_hurts_nobody_else() {
    let seconds = std::env::var("KITH_HOSTILE_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let options = Options {
        instances: Instances::default().with(Service::Sessions, 2),
        log: "warn".to_owned(),
        ..Options::default()
    };
    let platform = Platform::start(options).await.expect("the local platform");
    let all = Service::ALL.iter().copied();
    let all = all.flat_map(|service| (0..platform.count(service)).map(move |n| (service, n)));
    let all = all.filter_map(|(service, n)| platform.find(service, n));
    let began: Vec<_> = all.map(|at| (at, platform.instance(at).pid())).collect();
    let target = platform.target().await.expect("addresses");
    let options = HostileOptions { lasts: Duration::from_secs(seconds), ..HostileOptions::default() };
    let outcome =
        hostile::run(&target, &options, async || look(&platform, &began)).await.unwrap_or_else(|e| panic!("{e}"));
    println!("{outcome}");
    for (at, _) in &began {
        let mib = platform.memory(*at).unwrap_or(0) >> 20;
        println!("  {} holds {mib} MiB", platform.instance(*at));
    }
    assert!(outcome.is_clean(), "others were hurt\n{outcome}");
}
