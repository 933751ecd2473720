//! The Valkey data plane: what the storage layer is, and the steps that bring it to what it should be.
//!
//! `observe` looks (I/O), `plan` decides what to do (pure), `apply` does it (I/O), `readiness` judges (pure); `converge` is that in
//! a row. Promotion has a path of its own, since it must not wait for a pass: `prober` asks all primaries twice a second whether they are as they
//! were (`light`) and looks at everything when one is not, `watch` and `promote` decide (pure), `switchover` acts, and `outrank` sees to what a
//! dead primary was about to take.
//!
//! Nothing here knows Kubernetes: pods come in as [`types::Member`]. Every write names the node it is meant for, which is asked for
//! its id on the same connection first, and needs a lease that outlasts it.

pub mod apply;
pub mod bus;
pub mod converge;
pub mod disk;
#[cfg(test)]
pub(crate) mod fake;
pub mod light;
pub mod link;
pub mod mark;
pub mod migrations;
pub mod observe;
pub mod outrank;
pub mod ownership;
pub mod parse;
pub mod plan;
pub mod pressure;
pub mod prober;
pub mod promote;
pub mod readiness;
pub mod settings;
pub mod slots;
pub mod switchover;
pub mod types;
pub mod wanted;
pub mod watch;

pub use converge::{Outcome, converge};
pub use link::Links;
pub use prober::{Failover, Gate, Prober, Report};
