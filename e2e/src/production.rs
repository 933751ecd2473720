//! `examples/production.yaml` as the local cluster can run it: as it is written, but for a short list of what its machine has less of.
//!
//! *The budget.* Nine engines, three brokers and some twenty pods of services run on two cores and 24 GiB beside three nodes and a control
//! plane, which take about 2 GiB. With the sizes below they may take 12.3 GiB at most, and take about 3 when nothing is stored: an engine 20 MiB,
//! a broker with a heap of 384 MiB some 500, a service 20 to 40. Volumes, classes, replicas and limits of connections stay as they are.

use std::path::Path;

/// One text of the example, and what stands in its place.
#[derive(Debug, Clone, Copy)]
pub struct Substitution {
    /// The text, which the example holds once.
    pub from: &'static str,
    /// What is applied instead.
    pub to: &'static str,
}

/// All that is changed, and why: the machine has fewer cores and less memory.
pub const SUBSTITUTIONS: [Substitution; 6] = [
    // The services say nothing of their own, and would reserve more than two cores.
    Substitution {
        from: "  pod:\n    topologySpreadConstraints:\n",
        to: "  pod:\n    resources:\n      requests: {cpu: 20m, memory: 32Mi}\n      limits: {memory: 256Mi}\n    topologySpreadConstraints:\n",
    },
    Substitution { from: "maxMemory: 18Gi", to: "maxMemory: 256Mi" },
    Substitution { from: "requests: {cpu: \"2\", memory: 32Gi}", to: "requests: {cpu: 50m, memory: 64Mi}" },
    Substitution { from: "limits: {memory: 32Gi}", to: "limits: {memory: 512Mi}" },
    Substitution { from: "requests: {cpu: \"2\", memory: 8Gi}", to: "requests: {cpu: 150m, memory: 512Mi}" },
    // Half of it is the brokers' heap.
    Substitution { from: "limits: {memory: 8Gi}", to: "limits: {memory: 768Mi}" },
];

/// The example is not what the list was written for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the example holds {from:?} {times} times, not once: look at the list of substitutions")]
pub struct Changed {
    /// What was looked for.
    pub from: &'static str,
    /// How often it is there.
    pub times: usize,
}

/// The example's text.
pub fn example() -> std::io::Result<String> {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/production.yaml"))
}

/// The example with every substitution made; each must have exactly one place in it.
pub fn fitted(example: &str) -> Result<String, Changed> {
    let mut text = example.to_owned();
    for Substitution { from, to } in SUBSTITUTIONS {
        let times = example.matches(from).count();
        if times != 1 {
            return Err(Changed { from, times });
        }
        text = text.replacen(from, to, 1);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kith_crds::{
        ChatCluster, Gateway,
        chatcluster::{EventLogVariant, MAX_MEMORY_PERCENT, ManagedEventLog, ServiceSpec, StorageSpec},
        gateway::{ApiListener, WebsocketListener},
        shared::{PodSettings, Quantity, Resources},
    };
    use kith_platform::Service;
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;

    fn objects(text: &str) -> BTreeMap<String, Value> {
        let documents = serde_yaml_ng::Deserializer::from_str(text).map(|d| Value::deserialize(d).unwrap());
        documents.map(|object| (object["kind"].as_str().unwrap().to_owned(), object)).collect()
    }

    #[test]
    fn the_example_is_applied_as_it_is_but_for_what_the_machine_lacks() {
        let (example, mut fitted) =
            (objects(&example().unwrap()), objects(&fitted(&super::example().unwrap()).unwrap()));
        // What may differ, and nothing else does.
        let spec = &mut fitted.get_mut("ChatCluster").unwrap()["spec"];
        let as_written = &example["ChatCluster"]["spec"];
        spec["pod"].as_object_mut().unwrap().remove("resources").expect("a size of the services");
        for place in ["/storage/maxMemory", "/storage/pod/resources", "/eventLog/managed/pod/resources"] {
            let was = as_written.pointer(place).unwrap();
            let now = spec.pointer_mut(place).unwrap();
            assert_ne!(was, now, "{place}");
            now.clone_from(was);
        }
        assert_eq!(fitted, example);
    }

    #[test]
    fn an_example_that_has_changed_is_noticed() {
        let example = example().unwrap();
        for Substitution { from, to } in SUBSTITUTIONS {
            let gone = fitted(&example.replacen(from, to, 1)).unwrap_err();
            assert_eq!((gone.from, gone.times), (from, 0));
            let twice = fitted(&format!("{example}{from}")).unwrap_err();
            assert_eq!((twice.from, twice.times), (from, 2));
        }
    }

    /// Pods, and what all of them reserve and may take.
    #[derive(Default)]
    struct Budget {
        pods: u64,
        cpu_m: u64,
        reserved: u64,
        most: u64,
    }

    impl Budget {
        fn add(&mut self, pods: u32, merged: PodSettings, size: fn() -> Resources) {
            let (pods, resources) = (u64::from(pods), merged.resources.unwrap_or_else(size));
            let cpu = &resources.requests["cpu"].0;
            let cores = |text: &str| text.parse::<u64>().unwrap();
            let bytes = |text: &str| Quantity(text.to_owned()).to_bytes().unwrap();
            self.pods += pods;
            self.cpu_m += pods * cpu.strip_suffix('m').map_or_else(|| cores(cpu) * 1_000, cores);
            self.reserved += pods * bytes(&resources.requests["memory"].0);
            self.most += pods * bytes(&resources.limits["memory"].0);
        }
    }

    fn budget(text: &str) -> Budget {
        let mut objects = objects(text);
        let cluster: ChatCluster = serde_json::from_value(objects.remove("ChatCluster").unwrap()).unwrap();
        let gateway: Gateway = serde_json::from_value(objects.remove("Gateway").unwrap()).unwrap();
        let spec = &cluster.spec;
        let EventLogVariant::Managed(log) = spec.event_log.variant() else { panic!("brokers of its own") };
        let mut all = Budget::default();
        let engines = spec.storage.shards * (spec.storage.replicas + 1);
        all.add(engines, spec.pod_settings(&spec.storage.pod), StorageSpec::default_resources);
        all.add(log.brokers, spec.pod_settings(&log.pod), ManagedEventLog::default_resources);
        let services = &spec.services;
        for (pods, pod) in Service::ALL.iter().filter_map(|service| services.of(*service)) {
            all.add(pods, spec.pod_settings(pod), ServiceSpec::default_resources);
        }
        let (api, websocket) = (&gateway.spec.api, &gateway.spec.websocket);
        let least = api.autoscaling.as_ref().map_or(api.replicas, |scaling| scaling.min_replicas);
        all.add(least, spec.pod_settings(&api.pod), ApiListener::default_resources);
        all.add(websocket.replicas, spec.pod_settings(&websocket.pod), WebsocketListener::default_resources);
        all
    }

    #[test]
    fn all_of_it_fits_the_machine_even_if_every_container_takes_what_it_may() {
        let budget = budget(&fitted(&example().unwrap()).unwrap());
        assert!(budget.pods >= 9 + 3 + 22, "{} pods", budget.pods);
        assert!(budget.cpu_m <= 1_500, "{} thousandths of two cores are reserved", budget.cpu_m);
        assert!(budget.reserved <= 3 << 30, "{} MiB are reserved", budget.reserved >> 20);
        assert!(budget.most <= 13 << 30, "{} MiB may be taken of 24 GiB", budget.most >> 20);
    }

    #[test]
    fn engines_keep_the_room_that_the_operator_asks_for_beside_their_data() {
        let objects = objects(&fitted(&example().unwrap()).unwrap());
        let cluster: ChatCluster = serde_json::from_value(objects["ChatCluster"].clone()).unwrap();
        let storage = &cluster.spec.storage;
        let ceiling = StorageSpec::max_memory_ceiling(storage.pod.resources.as_ref().unwrap()).unwrap();
        let asked = storage.max_memory.as_ref().unwrap().to_bytes().unwrap();
        assert!(asked <= ceiling, "{asked} bytes are more than {MAX_MEMORY_PERCENT} per cent of the limit");
    }
}
