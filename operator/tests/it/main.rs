//! The operator from outside: what it renders, what it may do, and what it does to a real API server and to real engines.

mod dataplane;
mod fields;
mod golden;
mod outrank;
mod rebalance;
mod reconcile;
mod repair;
mod rights;
mod scale;
#[allow(dead_code, reason = "the admission tests use more of it")]
#[path = "../../../crds/tests/admission/server.rs"]
mod server;
mod start_script;
mod support;
