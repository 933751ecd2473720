//! Defaults and accessors of a ChatCluster.

use serde_json::json;

use super::*;
use crate::shared::Resources;

fn cluster(spec: &serde_json::Value) -> ChatCluster {
    serde_json::from_value(json!({
        "apiVersion": crate::API_VERSION,
        "kind": "ChatCluster",
        "metadata": {"name": "demo", "uid": "0b5ff6c1-6ee2-4a6e-8c5f-5a0d3c9b7a11"},
        "spec": spec
    }))
    .expect("a valid manifest")
}

#[test]
fn an_empty_spec_is_a_whole_platform() {
    let cluster = cluster(&json!({}));
    assert_eq!(cluster.spec, ChatClusterSpec::default());
    assert_eq!((cluster.spec.storage.shards, cluster.spec.storage.members()), (1, 3));
    assert_eq!(cluster.spec.storage.partitions, 1024);
    assert_eq!((cluster.spec.event_log.replication_factor(), cluster.spec.event_log.min_insync()), (3, 2));
    assert!(matches!(cluster.spec.event_log.variant(), EventLogVariant::Managed(managed) if managed.brokers == 3));
    assert_eq!(cluster.cluster_name(), "demo");
}

#[test]
fn one_broker_keeps_one_copy() {
    let cluster = cluster(&json!({"eventLog": {"managed": {"brokers": 1}}}));
    assert_eq!((cluster.spec.event_log.replication_factor(), cluster.spec.event_log.min_insync()), (1, 1));
}

#[test]
fn the_version_is_the_specs_then_the_adopted_then_the_operators() {
    let mut cluster = cluster(&json!({}));
    assert_eq!(cluster.wanted_version("0.3.0"), "0.3.0");
    cluster.status = Some(ChatClusterStatus { version: Some("0.2.0".to_owned()), ..Default::default() });
    assert_eq!(cluster.wanted_version("0.3.0"), "0.2.0");
    cluster.spec.version = Some("0.3.0".to_owned());
    assert_eq!(cluster.wanted_version("0.4.0"), "0.3.0");
}

#[test]
fn restored_data_keeps_its_uid() {
    let own = cluster(&json!({}));
    assert_eq!(own.data_uid(), own.uid());
    let restored = cluster(&json!({"restoreFrom": {"clusterUid": "11111111-2222-3333-4444-555555555555"}}));
    assert_eq!(restored.data_uid().as_deref(), Some("11111111-2222-3333-4444-555555555555"));
}

#[test]
fn data_takes_at_most_sixty_per_cent_of_the_memory() {
    let resources = Resources::of("1", "1Gi", "2Gi");
    let ceiling = (2_u64 << 30) / 100 * 60;
    assert_eq!(StorageSpec::max_memory_ceiling(&resources), Some(ceiling));
    assert_eq!(StorageSpec::max_memory_ceiling(&Resources::default()), None);
}

#[test]
fn weights_beyond_the_list_are_the_default() {
    let storage = StorageSpec { weights: vec![50, 200], ..StorageSpec::default() };
    assert_eq!([0, 1, 2].map(|index| storage.initial_weight(index)), [50, 200, WEIGHT_DEFAULT]);
}
