//! The platform on the local Kubernetes cluster that `make up` starts: what the way through a cluster could break, what platform teams see,
//! and what happens when things die. Tests that break something run alone; all others share the cluster.
#![allow(missing_docs, unreachable_pub)]

#[macro_use]
#[allow(dead_code, reason = "local processes show the others")]
mod behaviour;

#[path = "cluster/admit.rs"]
mod admit;
#[path = "cluster/brokers.rs"]
mod brokers;
#[path = "cluster/chaos_run.rs"]
mod chaos_run;
#[path = "cluster/event_log_access.rs"]
mod event_log_access;
#[path = "cluster/faults.rs"]
mod faults;
#[path = "cluster/gateway_tls.rs"]
mod gateway_tls;
#[path = "cluster/hostile.rs"]
mod hostile;
#[path = "cluster/hostile_clients.rs"]
mod hostile_clients;
#[path = "cluster/operator_faults.rs"]
mod operator_faults;
#[path = "cluster/operator_lifecycle.rs"]
mod operator_lifecycle;
#[path = "cluster/operator_quiet.rs"]
mod operator_quiet;
#[path = "cluster/operator_uninstall.rs"]
mod operator_uninstall;
#[path = "cluster/operator_views.rs"]
mod operator_views;
#[path = "cluster/own.rs"]
mod own;
#[path = "cluster/production.rs"]
mod production;
#[path = "cluster/rebalance_scale.rs"]
mod rebalance_scale;
#[path = "cluster/upgrade.rs"]
mod upgrade;

use std::{panic::AssertUnwindSafe, time::Duration};

use behaviour::Failure;
use futures::FutureExt;
use kith_e2e::{
    cluster::Cluster,
    env::Env,
    ledger::Report,
    load::{Load, LoadOptions},
    target::Target,
};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Who only uses the platform holds it for reading, who breaks something for writing.
static PLATFORM: RwLock<()> = RwLock::const_new(());
/// From a fault to conditions that are all healthy.
pub const HEAL: Duration = Duration::from_secs(120);

/// The platform and the cluster beneath, shared with other tests.
pub async fn shared() -> Result<(RwLockReadGuard<'static, ()>, Cluster, Target), Failure> {
    let guard = PLATFORM.read().await;
    let cluster = Cluster::connect(&Env::load()?).await?;
    Ok((guard, cluster, Target::of_env().await?))
}

/// The platform for this test alone, healthy at the beginning.
pub async fn alone() -> Result<(RwLockWriteGuard<'static, ()>, Cluster, Target), Failure> {
    let guard = PLATFORM.write().await;
    let cluster = Cluster::connect(&Env::load()?).await?;
    cluster.await_healthy(HEAL).await?;
    Ok((guard, cluster, Target::of_env().await?))
}

/// Load while `break_it` runs; afterwards the platform heals and every promise was kept.
pub async fn under_load(
    cluster: &Cluster,
    target: &Target,
    name: &str,
    break_it: impl AsyncFnOnce(&Load) -> Result<(), Failure>,
) -> Result<Report, Failure> {
    let load = steady_load(target).await?;
    Box::pin(fault(cluster, &load, name, break_it(&load))).await?;
    kept(name, load).await
}

/// People who chat in eight conversations, all of them served.
pub async fn steady_load(target: &Target) -> Result<Load, Failure> {
    let load = Load::start(target, LoadOptions { pairs: 8, rate: 40.0, ..LoadOptions::default() }).await?;
    load.all_serve(HEAL).await?;
    Ok(load)
}

/// Lets a fault happen under load and waits until the platform is well and every promise can be kept again.
pub async fn fault(
    cluster: &Cluster,
    load: &Load,
    name: &str,
    happens: impl Future<Output = behaviour::Proof>,
) -> behaviour::Proof {
    load.ledger().injected(name);
    happens.await?;
    load.all_serve(HEAL).await?;
    cluster.await_healthy(HEAL).await?;
    load.progress(100, HEAL).await?;
    Ok(())
}

/// Ends a load: every promise was kept, and no message given up.
pub async fn kept(name: &str, load: Load) -> Result<Report, Failure> {
    let report = load.finish(HEAL).await?;
    println!("{name}\n{report}");
    if report.is_clean() && report.given_up == 0 {
        Ok(report)
    } else {
        Err(format!("promises were broken\n{report}").into())
    }
}

/// A part of a test that what follows must come after: an assertion that fails in it is a failure like any other.
pub async fn contained(part: impl Future<Output = behaviour::Proof>) -> behaviour::Proof {
    match AssertUnwindSafe(part).catch_unwind().await {
        Ok(proof) => proof,
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(text.unwrap_or_else(|| "a panic without a text".to_owned()).into())
        }
    }
}

pub async fn on_the_cluster(proof: impl AsyncFnOnce(&Target) -> behaviour::Proof) {
    let (_guard, _, target) = shared().await.expect("the platform of make up");
    if let Err(failure) = proof(&target).await {
        panic!("{failure}");
    }
}

// What the way through the cluster could break: its network, the images, and what the operator writes for each process (keys, limits,
// certificates, the event log). Everything else is the same on local processes, where `local` shows it.
every_behaviour!(crate::on_the_cluster, message_send: behaviour::send, [
    a_message_is_stored_and_reaches_the_other_users_socket,
    a_message_sent_on_the_socket_is_acknowledged_and_delivered,
    every_device_of_the_recipient_gets_the_message,
    a_business_line_sends_for_its_user,
]);
every_behaviour!(crate::on_the_cluster, message_catch_up: behaviour::catch_up, [
    messages_sent_while_offline_are_pushed_at_login_in_order,
    a_dropped_connection_comes_back_without_a_hole,
]);
every_behaviour!(crate::on_the_cluster, message_bad_input: behaviour::bad_input, [
    a_body_of_another_kind_or_size_is_refused_by_status,
]);
every_behaviour!(crate::on_the_cluster, message_auth: behaviour::auth, [
    a_call_without_a_good_token_is_unauthenticated,
    a_socket_without_a_good_token_is_closed_for_good,
    keys_and_the_description_of_the_api_are_public,
]);
every_behaviour!(crate::on_the_cluster, message_devices: behaviour::devices, [
    a_device_that_was_sent_away_is_out_at_once_and_not_listed_again,
]);
every_behaviour!(crate::on_the_cluster, message_log: behaviour::log, [
    the_event_log_replays_to_the_same_conversation,
]);
