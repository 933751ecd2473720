//! Numbers of objects for `/metrics`: conditions are read off the watched objects themselves, and whatever else is said of an object goes with it.
//!
//! A recorder of the process keeps every series for good, so a deleted ChatCluster would be alerted on for as long as the operator runs.
//! These are rendered anew at each scrape.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Resource, ResourceExt, runtime::reflector::Store};
use metrics::Label;
use metrics_exporter_prometheus::PrometheusBuilder;

/// An object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Object {
    /// The object that `object` is.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self::named::<K>(&object.namespace().unwrap_or_default(), &object.name_any())
    }

    /// The object of this name.
    pub fn named<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> Self {
        Self { kind: K::kind(&()).into_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// One number of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Name of the metric; one that ends in `_total` only rises.
    pub name: &'static str,
    /// Labels besides the object's own: `cluster` (of a ShardRebalance: `rebalance`), which is its `namespace/name`.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

impl Figure {
    /// A number without labels of its own.
    pub fn new(name: &'static str, value: f64) -> Self {
        Self { name, labels: Vec::new(), value }
    }

    /// With a label.
    #[must_use]
    pub fn with(mut self, label: &'static str, value: impl Into<String>) -> Self {
        self.labels.push((label, value.into()));
        self
    }
}

type Conditions = Vec<(Object, Vec<Condition>)>;

/// A kind that is watched, and how its objects' conditions are read.
struct Source {
    kind: String,
    read: Box<dyn Fn() -> Conditions + Send + Sync>,
}

#[derive(Default)]
struct Inner {
    /// By object and by who said them.
    figures: Mutex<BTreeMap<(Object, &'static str), Vec<Figure>>>,
    sources: Mutex<Vec<Source>>,
}

/// All numbers of objects.
#[derive(Clone, Default)]
pub struct Figures(Arc<Inner>);

impl Figures {
    /// From now on the objects of `store` are those of their kind that exist, besides those of other stores; `conditions` reads theirs.
    pub fn follow<K>(&self, store: Store<K>, conditions: impl Fn(&K) -> Option<&Vec<Condition>> + Send + Sync + 'static)
    where
        K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    {
        let read = move || {
            let state = store.state();
            state.iter().map(|o| (Object::of(o.as_ref()), conditions(o).cloned().unwrap_or_default())).collect()
        };
        let source = Source { kind: K::kind(&()).into_owned(), read: Box::new(read) };
        self.0.sources.lock().unwrap_or_else(PoisonError::into_inner).push(source);
    }

    /// What `author` has to say of an object, instead of what it said before.
    pub fn set(&self, object: &Object, author: &'static str, figures: Vec<Figure>) {
        self.0.figures.lock().unwrap_or_else(PoisonError::into_inner).insert((object.clone(), author), figures);
    }

    /// Forgets objects that are gone; answers the conditions of those that exist.
    pub fn sweep(&self) -> BTreeMap<Object, Vec<Condition>> {
        let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let kinds: BTreeSet<&str> = sources.iter().map(|s| s.kind.as_str()).collect();
        let alive: BTreeMap<Object, Vec<Condition>> = sources.iter().flat_map(|s| (s.read)()).collect();
        let mut figures = self.0.figures.lock().unwrap_or_else(PoisonError::into_inner);
        // Of a kind that nobody watches it is not known what exists.
        figures.retain(|(object, _), _| !kinds.contains(object.kind.as_str()) || alive.contains_key(object));
        alive
    }

    /// All of it, as Prometheus reads it.
    pub fn render(&self) -> String {
        let conditions = self.sweep();
        let figures = self.0.figures.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::describe_gauge!("kith_condition", "Conditions of Kith's objects: 1 True, 0 False, -1 Unknown.");
            for (object, conditions) in &conditions {
                for condition in conditions {
                    metrics::gauge!("kith_condition", labels_of(object, condition)).set(value(condition));
                }
            }
            for ((object, _), figures) in &figures {
                for figure in figures {
                    record(object, figure);
                }
            }
        });
        recorder.handle().render()
    }
}

fn labels_of(object: &Object, condition: &Condition) -> Vec<Label> {
    let Object { kind, namespace, name } = object.clone();
    [("kind", kind), ("namespace", namespace), ("name", name), ("type", condition.type_.clone())]
        .map(|(label, value)| Label::new(label, value))
        .to_vec()
}

fn value(condition: &Condition) -> f64 {
    match condition.status.as_str() {
        "True" => 1.0,
        "False" => 0.0,
        _ => -1.0,
    }
}

fn record(object: &Object, figure: &Figure) {
    let own = if object.kind == "ShardRebalance" { "rebalance" } else { "cluster" };
    let mut labels = vec![Label::new(own, format!("{}/{}", object.namespace, object.name))];
    labels.extend(figure.labels.iter().map(|(label, value)| Label::new(*label, value.clone())));
    if figure.name.ends_with("_total") {
        metrics::counter!(figure.name, labels).absolute(figure.value as u64);
    } else {
        metrics::gauge!(figure.name, labels).set(figure.value);
    }
}

#[cfg(test)]
mod tests {
    use kith_crds::ChatCluster;
    use kube::runtime::{reflector, watcher::Event};
    use serde_json::json;

    use super::*;

    fn cluster(name: &str, ready: &str) -> ChatCluster {
        let condition = json!({"type": "Ready", "status": ready, "reason": "X", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        serde_json::from_value(json!({
            "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster", "metadata": {"name": name, "namespace": "ns"},
            "spec": {}, "status": {"conditions": [condition]}
        }))
        .unwrap()
    }

    #[test]
    fn deleting_a_chat_cluster_takes_its_series_away_and_leaves_the_others() {
        let (store, mut writer) = reflector::store::<ChatCluster>();
        let figures = Figures::default();
        figures.follow(store, |c| c.status.as_ref().map(|s| &s.conditions));
        let (gone, stays) = (cluster("gone", "True"), cluster("stays", "False"));
        for object in [&gone, &stays] {
            writer.apply_watcher_event(&Event::Apply(object.clone()));
            let lag = Figure::new("kith_event_log_lag_events", 7.0).with("group", "g\"1");
            let failovers = Figure::new("kith_storage_failovers_total", 2.0);
            figures.set(&Object::of(object), "test", vec![lag, failovers]);
        }
        let text = figures.render();
        let condition = |name: &str, value: &str| {
            format!("kith_condition{{kind=\"ChatCluster\",namespace=\"ns\",name=\"{name}\",type=\"Ready\"}} {value}\n")
        };
        assert!(text.contains(&condition("gone", "1")) && text.contains(&condition("stays", "0")), "{text}");
        assert!(text.contains("kith_event_log_lag_events{cluster=\"ns/gone\",group=\"g\\\"1\"} 7\n"), "{text}");
        assert!(text.contains("kith_storage_failovers_total{cluster=\"ns/stays\"} 2\n"), "{text}");

        writer.apply_watcher_event(&Event::Delete(gone));
        let text = figures.render();
        assert!(!text.contains("gone"), "{text}");
        assert!(text.contains(&condition("stays", "0")) && text.contains("{cluster=\"ns/stays\"} 2\n"), "{text}");
    }

    #[test]
    fn what_is_said_again_takes_the_place_of_what_was_said_before() {
        let figures = Figures::default();
        let object = Object::named::<ChatCluster>("ns", "demo");
        figures.set(&object, "test", vec![Figure::new("kith_a", 1.0).with("shard", "demo-0")]);
        figures.set(&object, "other", vec![Figure::new("kith_b", 3.0)]);
        figures.set(&object, "test", vec![Figure::new("kith_a", 2.0).with("shard", "demo-1")]);
        let text = figures.render();
        assert!(!text.contains("demo-0") && text.contains("shard=\"demo-1\"} 2"), "{text}");
        assert!(text.contains("kith_b{cluster=\"ns/demo\"} 3"), "{text}");
    }
}
