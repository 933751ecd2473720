//! A minute and a half of everything at once: shards come and go while operators, primaries and replicas die under load.

use kith_e2e::chaos::{self, ChaosOptions};

use crate::{alone, behaviour::Proof};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_while_shards_change_break_no_promise() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let outcome = chaos::run(&cluster, &target, &ChaosOptions::short()).await?;
    println!("{outcome}");
    assert!(outcome.is_clean(), "promises were broken\n{outcome}");
    Ok(())
}
