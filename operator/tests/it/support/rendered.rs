//! Whole objects as they are rendered from a manifest of one ChatCluster and, if it has one, its Gateway.

use kith_crds::{ChatCluster, Gateway, chatcluster::Images};
use kith_operator::{
    gateway,
    plan::{KafkaPlan, Plan},
    release::Release,
    render::{
        kafka::{self, ExternalAddress},
        kafka_access::Enforcement,
        network, valkey,
        versions::PREVIOUS,
        workloads,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

const UID: &str = "0b5ff6c1-6ee2-4a6e-8c5f-5a0d3c9b7a11";

fn release() -> Release {
    let image = |name: &str| format!("registry.example/{name}:1");
    let images = Images { kith: image("kith"), valkey: image("valkey"), kafka: image("kafka") };
    Release {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        images: images.clone(),
        previous_version: PREVIOUS.to_owned(),
        previous_images: Some(images),
    }
}

/// An object as the API server would hand it out.
pub(crate) fn object<K: DeserializeOwned>(mut value: Value) -> K {
    value["metadata"]["uid"] = UID.into();
    serde_json::from_value(value).expect("the object")
}

/// The plan of a ChatCluster.
pub(crate) fn plan(cluster: &ChatCluster) -> Plan {
    Plan::resolve(cluster, &release()).expect("a valid spec")
}

#[derive(Default)]
struct Objects(Vec<Value>);

impl Objects {
    fn add(&mut self, object: &impl Serialize) {
        self.0.push(serde_json::to_value(object).expect("JSON"));
    }
}

/// Everything that is applied.
pub(crate) fn rendered(cluster: &ChatCluster, edge: Option<&Gateway>) -> Vec<Value> {
    let plan = plan(cluster);
    let mut all = Objects::default();
    all.add(&valkey::config_map(&plan));
    let shard = valkey::shard(&plan, &format!("{}-0", plan.name), None);
    all.add(&shard.stateful_set);
    all.add(&shard.service);
    all.add(&shard.budget);
    if let KafkaPlan::Managed(managed) = &plan.event_log.kafka {
        let external = kafka::external_services(&plan, managed);
        let host = |index| managed.spec.external_access.as_ref().and_then(|access| access.host(index));
        let address = |(index, _)| Some(ExternalAddress { host: host(index), port: 30_094 });
        let addresses: Vec<_> = (0..).zip(&external).map(address).collect();
        let map = kafka::config_map(&plan, managed, &addresses, Enforcement::Enforced);
        all.add(&map);
        all.add(&kafka::stateful_set(&plan, managed, &map, "certificate", None));
        all.add(&kafka::headless(&plan));
        all.add(&kafka::budget(&plan));
        for service in &external {
            all.add(service);
        }
    }
    for service in &plan.services {
        let objects = workloads::service(&plan, service).expect("JSON");
        all.add(&objects.config_map);
        all.add(&objects.deployment);
        if let Some(service) = &objects.service {
            all.add(service);
        }
        all.add(&objects.budget);
    }
    for policy in &network::policies(&plan) {
        all.add(policy);
    }
    if let Some(edge) = edge {
        let objects = gateway::render::objects(&plan, edge).expect("JSON");
        for listener in &objects.listeners {
            all.add(&listener.config_map);
            all.add(&listener.deployment);
            all.add(&listener.service);
            all.add(&listener.budget);
            if let Some(scaler) = &listener.autoscaler {
                all.add(scaler);
            }
        }
        if let Some(ingress) = &objects.ingress {
            all.add(ingress);
        }
        if let Some(route) = &objects.route {
            all.add(route);
        }
    }
    all.0
}
