//! The operator: turns custom resources into a running chat platform and keeps it healthy.
//!
//! One module per kind (`chatcluster`, `storageshard`, `gateway`), each with the same steps: observe (reads the API server),
//! validate and build (pure), apply (writes), then status. What the kinds share stands beside them: `plan` validates, `render` renders
//! objects, `pki` makes keys and certificates, `dataplane` talks to Valkey, `eventlog` to Kafka.

pub mod api_client;
pub mod apply;
pub mod backoff;
pub mod certificates;
pub mod chatcluster;
pub mod clash;
pub mod context;
pub mod controllers;
pub mod dataplane;
pub mod diff;
pub mod eventlog;
pub mod events;
pub mod figures;
pub mod gateway;
pub mod lanes;
pub mod lastspec;
pub mod lease;
pub mod library;
pub mod panics;
pub mod pki;
pub mod plan;
pub mod rebalance;
pub mod refusal;
pub mod release;
pub mod render;
pub mod run;
pub mod runtime;
pub mod storageshard;
pub mod stores;
pub mod survey;
pub mod uninstall;
pub mod volumes;
pub mod words;
pub mod workload;
