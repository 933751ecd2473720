//! Renders Kubernetes objects from what was validated. Pure: the same input gives the same bytes, whatever operator runs.
//!
//! Nothing of the operator itself (its version, image, environment, clock) may reach a pod template: a new operator must not restart a
//! running platform. `tests/it/golden.rs` compares whole objects, those of the version before included; what differs by version stands in `versions`.

pub mod endpoints;
pub mod kafka;
pub mod kafka_access;
pub mod meta;
pub mod network;
pub mod pod;
pub mod settings;
pub mod valkey;
pub mod versions;
pub mod workloads;
