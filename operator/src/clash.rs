//! Names of ChatClusters and Gateways whose objects would have the same names: refused before anything is made.
//!
//! Objects are named `<cluster>-<part>` and `<cluster>-<gateway>-<part>`, so `a` with a Gateway `b-c` and `a-b` with a Gateway `c` would both
//! have a Deployment `a-b-c-api`. The younger one is refused, in words; what runs already is never judged again.

use k8s_openapi::jiff::Timestamp;
use kith_crds::{
    ChatCluster, Gateway,
    conditions::{self, Finding, reason},
};
use kube::{Api, Client, Resource, ResourceExt, api::ListParams};

use crate::{
    apply::{ApplyError, Live, Object},
    build::meta::{self, Component},
    chatcluster::PassError,
};

/// Kind and name of an object.
type Named = (&'static str, String);

/// A ChatCluster or a Gateway, and what is named after it.
struct Owner {
    /// Which; the ChatCluster of a Gateway too.
    words: String,
    /// When it was made, and what decides between two of the same second.
    age: (Option<Timestamp>, &'static str, String),
    objects: Vec<Named>,
}

/// What is named after a ChatCluster alone. Brokers count where none run, too: they may be there tomorrow.
fn of_cluster(cluster: &str) -> Vec<Named> {
    let name = |component| meta::component_name(cluster, component);
    let mut all = vec![
        ("ConfigMap", meta::valkey_config_map(cluster)),
        ("ConfigMap", meta::kafka_config_map(cluster)),
        ("ConfigMap", meta::last_spec_config_map(cluster)),
        ("Secret", meta::ca_secret(cluster)),
        ("Secret", meta::token_keys_secret(cluster)),
        ("Secret", meta::engine_users_secret(cluster)),
        ("Secret", meta::business_client_secret(cluster)),
        ("NetworkPolicy", format!("{cluster}-default-deny")),
    ];
    for component in Component::ALL {
        all.push(("Secret", meta::tls_secret(cluster, component)));
        all.push(("ServiceAccount", name(component)));
        all.push(("NetworkPolicy", name(component)));
    }
    for component in [Component::Storage, Component::Tasks, Component::Sessions, Component::Business] {
        all.extend(["Deployment", "Service", "PodDisruptionBudget"].map(|kind| (kind, name(component))));
        all.push(("ConfigMap", meta::config_map(&name(component))));
    }
    all.extend(["StatefulSet", "Service", "PodDisruptionBudget"].map(|kind| (kind, name(Component::Kafka))));
    all
}

/// What is named after a Gateway and its ChatCluster.
fn of_gateway(cluster: &str, gateway: &str) -> Vec<Named> {
    let both = format!("{cluster}-{gateway}");
    let mut all = vec![("Ingress", both.clone()), ("HTTPRoute", both.clone())];
    for component in [Component::Api, Component::Gateway] {
        let name = meta::component_name(&both, component);
        let kinds = ["Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"];
        all.extend(kinds.map(|kind| (kind, name.clone())));
        all.push(("ConfigMap", meta::config_map(&name)));
    }
    all
}

impl Owner {
    fn cluster(cluster: &ChatCluster) -> Self {
        let name = cluster.name_any();
        Self { words: format!("ChatCluster {name}"), objects: of_cluster(&name), age: age(cluster) }
    }

    fn gateway(gateway: &Gateway) -> Self {
        let (name, cluster) = (gateway.name_any(), &gateway.spec.cluster_ref.name);
        let objects = of_gateway(cluster, &name);
        Self { words: format!("Gateway {name} of ChatCluster {cluster}"), objects, age: age(gateway) }
    }
}

fn age<K: Resource<DynamicType = ()>>(object: &K) -> (Option<Timestamp>, &'static str, String) {
    let kind = if K::kind(&()) == "ChatCluster" { "ChatCluster" } else { "Gateway" };
    (object.meta().creation_timestamp.as_ref().map(|t| t.0), kind, object.name_any())
}

/// Why `new` cannot be made: an older one has an object of the same kind and name.
fn taken(new: &Owner, others: impl IntoIterator<Item = Owner>) -> Option<Finding> {
    others.into_iter().filter(|other| other.age < new.age).find_map(|other| clash(new, &other))
}

fn clash(new: &Owner, other: &Owner) -> Option<Finding> {
    let (kind, name) = new.objects.iter().find(|object| other.objects.contains(object))?;
    let message = format!(
        "{} would have the same {kind} {name} as {}, which was there before: create it under another name",
        new.words, other.words
    );
    Some(Finding::fails(conditions::READY, reason::INVALID_SPEC, message))
}

/// What is wrong with the name of a ChatCluster, given all of its namespace. Its own Gateways give way to it.
fn cluster_clash(cluster: &ChatCluster, clusters: &Live<ChatCluster>, gateways: &Live<Gateway>) -> Option<Finding> {
    let name = cluster.name_any();
    let foreign = gateways.values().filter(|gateway| gateway.spec.cluster_ref.name != name).map(Owner::gateway);
    let others = clusters.values().filter(|other| other.name_any() != name).map(Owner::cluster);
    taken(&Owner::cluster(cluster), others.chain(foreign))
}

/// What is wrong with the name of a Gateway, given all of its namespace.
fn gateway_clash(gateway: &Gateway, clusters: &Live<ChatCluster>, gateways: &Live<Gateway>) -> Option<Finding> {
    let new = Owner::gateway(gateway);
    let own = clusters.get(&gateway.spec.cluster_ref.name).and_then(|own| clash(&new, &Owner::cluster(own)));
    own.or_else(|| {
        let others = gateways.values().filter(|other| other.name_any() != gateway.name_any()).map(Owner::gateway);
        taken(&new, others.chain(clusters.values().map(Owner::cluster)))
    })
}

/// Refuses a ChatCluster of which nothing was made yet, when the names of its objects are taken.
pub async fn refuse_cluster(client: &Client, cluster: &ChatCluster) -> Result<(), PassError> {
    if cluster.status.as_ref().is_some_and(|status| status.version.is_some()) {
        return Ok(());
    }
    let (clusters, gateways) = all(client, &cluster.namespace().unwrap_or_default()).await?;
    cluster_clash(cluster, &clusters, &gateways).map_or(Ok(()), |finding| Err(finding.into()))
}

/// Refuses a Gateway of which nothing was made yet, when the names of its objects are taken.
pub async fn refuse_gateway(client: &Client, gateway: &Gateway) -> Result<(), PassError> {
    if gateway.status.as_ref().is_some_and(|status| status.api.is_some() || status.websocket.is_some()) {
        return Ok(());
    }
    let (clusters, gateways) = all(client, &gateway.namespace().unwrap_or_default()).await?;
    gateway_clash(gateway, &clusters, &gateways).map_or(Ok(()), |finding| Err(finding.into()))
}

/// From the API server's cache: what it does not know yet, the step that writes refuses.
async fn all(client: &Client, namespace: &str) -> Result<(Live<ChatCluster>, Live<Gateway>), ApplyError> {
    tokio::try_join!(list(client, namespace), list(client, namespace))
}

async fn list<K: Object>(client: &Client, namespace: &str) -> Result<Live<K>, ApplyError> {
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let found = api.list(&ListParams::default().match_any()).await.map_err(|e| ApplyError::kube::<K>("*", e))?;
    Ok(found.items.into_iter().map(|object| (object.name_any(), object)).collect())
}

#[cfg(test)]
mod tests {
    use kith_crds::names;
    use kube::CustomResourceExt;
    use serde_json::json;

    use super::*;

    fn cluster(name: &str, second: i64) -> ChatCluster {
        serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": at(second)}, "spec": {}}))
            .unwrap()
    }

    fn gateway(cluster: &str, name: &str, second: i64) -> Gateway {
        let metadata = json!({"name": name, "creationTimestamp": at(second)});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"clusterRef": {"name": cluster}}})).unwrap()
    }

    fn at(second: i64) -> String {
        Timestamp::from_second(second).unwrap().to_string()
    }

    fn live<K: ResourceExt + Clone>(objects: &[&K]) -> Live<K> {
        objects.iter().map(|object| (object.name_any(), (*object).clone())).collect()
    }

    #[test]
    fn names_that_contain_each_other_are_refused_to_the_younger_one() {
        let (a, ab) = (cluster("a", 1), cluster("a-b", 2));
        let (old, young) = (gateway("a", "b-c", 3), gateway("a-b", "c", 4));
        let (clusters, gateways) = (live(&[&a, &ab]), live(&[&old, &young]));
        assert_eq!(gateway_clash(&old, &clusters, &gateways), None);
        let refused = gateway_clash(&young, &clusters, &gateways).expect("a refusal");
        assert_eq!(refused.reason, reason::INVALID_SPEC);
        for words in ["Gateway c of ChatCluster a-b", "Ingress a-b-c", "Gateway b-c of ChatCluster a,"] {
            assert!(refused.message.contains(words), "{}", refused.message);
        }
    }

    #[test]
    fn names_that_contain_others_are_let_in_where_no_object_is_shared() {
        let (a, ab, edge) = (cluster("a", 1), cluster("a-b", 3), gateway("a", "b", 2));
        let (clusters, gateways) = (live(&[&a, &ab]), live(&[&edge]));
        assert_eq!(cluster_clash(&ab, &clusters, &gateways), None);
        assert_eq!(gateway_clash(&edge, &clusters, &gateways), None);
        let (brokers, all) = (cluster("a-kafka", 5), live(&[&a, &cluster("a-kafka", 5)]));
        assert_eq!(cluster_clash(&brokers, &all, &Live::new()), None);
    }

    #[test]
    fn gateways_whose_names_would_take_a_parts_objects_cannot_be_created() {
        for component in Component::ALL {
            assert!(names::RESERVED_GATEWAY_NAMES.contains(&component.name()), "{}", component.name());
        }
        let quoted: Vec<String> = names::RESERVED_GATEWAY_NAMES.iter().map(|name| format!("'{name}'")).collect();
        let definition = serde_json::to_string(&Gateway::crd()).unwrap();
        assert!(definition.contains(&format!("in [{}]", quoted.join(", "))), "the definition has another list");
        // Whatever the rule lets pass takes nothing of its own ChatCluster.
        for name in ["edge", "0", "valkey-0", "storage-1", "default-deny", "last", "token"] {
            let edge = gateway("a", name, 2);
            assert_eq!(gateway_clash(&edge, &live(&[&cluster("a", 1)]), &live(&[&edge])), None, "{name}");
        }
    }
}
