//! The platform as processes of this machine: every behaviour, through real sockets, without Kubernetes.
#![allow(missing_docs, unreachable_pub)]

#[macro_use]
mod behaviour;
#[path = "local/bytes.rs"]
mod bytes;
#[path = "local/lines.rs"]
mod lines;

use std::sync::{Arc, Weak};

use kith_e2e::{
    local::{Options, Platform},
    target::Target,
};
use tokio::sync::Mutex;

/// The platform that tests running at the same time share; it ends with the last of them.
static SHARED: Mutex<Weak<Platform>> = Mutex::const_new(Weak::new());

pub async fn shared() -> Arc<Platform> {
    let mut shared = SHARED.lock().await;
    if let Some(platform) = shared.upgrade() {
        return platform;
    }
    let platform = Arc::new(Platform::start(Options::default()).await.expect("the local platform"));
    *shared = Arc::downgrade(&platform);
    platform
}

pub async fn on_local_processes(proof: impl AsyncFnOnce(&Target) -> behaviour::Proof) {
    let platform = shared().await;
    let target = platform.target().await.expect("addresses");
    if let Err(failure) = proof(&target).await {
        panic!("{failure}");
    }
}

every_behaviour!(crate::on_local_processes);
