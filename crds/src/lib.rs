//! Kith's custom resources: types, defaults, validation rules and the generator of their YAML.
//!
//! One module per kind. What a field means stands in its doc comment and nowhere else: `kubectl explain`, the CRDs in
//! `charts/kith-crds` and `docs/crds.md` are made from it by `cargo crdgen`, and `tests/drift.rs` fails when they differ.
//!
//! This crate knows the objects only. It never talks to an API server, never looks at another object than the one it
//! is asked about, and knows nothing of Valkey, Kafka or pods beyond the settings that users write.

// `KubeSchema` copies each type into a function body, where `pub` reaches nobody.
#![allow(unreachable_pub)]

pub mod chatcluster;
pub mod conditions;
pub mod gateway;
pub mod generate;
pub mod names;
pub mod shardrebalance;
pub mod shared;
pub mod storageshard;

pub use chatcluster::{ChatCluster, ChatClusterSpec, ChatClusterStatus};
pub use gateway::{Gateway, GatewaySpec, GatewayStatus};
pub use shardrebalance::{ShardRebalance, ShardRebalanceSpec, ShardRebalanceStatus};
pub use storageshard::{StorageShard, StorageShardSpec, StorageShardStatus};

/// The API group of every kind.
pub const GROUP: &str = "kith.dev";
/// The served and stored version of every kind.
pub const VERSION: &str = "v1alpha1";
/// `kith.dev/v1alpha1`, as manifests and owner references say it.
pub const API_VERSION: &str = "kith.dev/v1alpha1";
