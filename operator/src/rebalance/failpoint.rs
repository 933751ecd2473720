//! Named places at which a test makes the process die, as it may at any of them.
//!
//! `KITH_FAILPOINT=<name>` aborts at the first pass through the place, `<name>@<n>` at the n-th. Unset, a place costs one look at a
//! variable that was read at start.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// A batch was chosen and nothing was sent.
pub const BEFORE_START: &str = "rebalance.before-start";
/// The engine was told to migrate.
pub const AFTER_START: &str = "rebalance.after-start";
/// The job runs.
pub const IN_PROGRESS: &str = "rebalance.in-progress";
/// A job is to be cancelled.
pub const BEFORE_CANCEL: &str = "rebalance.before-cancel";
/// A job was cancelled.
pub const AFTER_CANCEL: &str = "rebalance.after-cancel";
/// The slots belong to the target; its replicas may be behind.
pub const LANDED: &str = "rebalance.landed";
/// The batch is done.
pub const DONE: &str = "rebalance.done";

/// Every place, for tests that go through all of them.
pub const ALL: [&str; 7] = [BEFORE_START, AFTER_START, IN_PROGRESS, BEFORE_CANCEL, AFTER_CANCEL, LANDED, DONE];

struct Armed {
    name: String,
    left: AtomicU64,
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED
        .get_or_init(|| {
            let text = std::env::var("KITH_FAILPOINT").ok()?;
            let (name, count) = text.split_once('@').unwrap_or((&text, "1"));
            Some(Armed { name: name.to_owned(), left: AtomicU64::new(count.parse().unwrap_or(1)) })
        })
        .as_ref()
}

/// Dies here if this place is the one that was named.
pub fn hit(name: &str) {
    if let Some(armed) = armed().filter(|a| a.name == name)
        && armed.left.fetch_sub(1, Ordering::AcqRel) == 1
    {
        tracing::error!(name, "the process ends at a failure point");
        std::process::abort();
    }
}
