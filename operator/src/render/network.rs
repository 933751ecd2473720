//! Network policies: nobody may connect to a pod of the platform unless a rule below says so.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kith_crds::names;
use kith_platform::{Serves, Service};

use super::{
    kafka,
    meta::{
        self,
        Component::{self, Kafka, Valkey},
    },
    pod::ADMIN_PORT,
    valkey, versions,
};
use crate::plan::{KafkaPlan, Plan};

/// Who may connect.
enum From {
    /// Everyone.
    Anyone,
    /// These components, the operator when `operator` is set, and pods of any namespace that carry this label with the ChatCluster's name.
    Only { components: Vec<Component>, operator: bool, labelled: Option<&'static str> },
}

/// Who connects to a service of these: its callers and its own other instances, everyone where it serves lines or clients; none where it serves
/// nobody.
fn callers(service: Service, among: &[Service]) -> Option<From> {
    match service.serves() {
        Serves::Nobody => None,
        Serves::Platform(_) => {
            Some(only(service.peers().filter(|peer| among.contains(peer)).map(Component::from).collect()))
        }
        Serves::Lines(_) | Serves::Clients => Some(From::Anyone),
    }
}

fn only(components: Vec<Component>) -> From {
    From::Only { components, operator: false, labelled: None }
}

/// Those of the services that need something, and the part that gives it.
fn needing(services: &[Service], needs: impl Fn(Service) -> bool, part: Component) -> Vec<Component> {
    services.iter().copied().filter(|service| needs(*service)).map(Component::from).chain([part]).collect()
}

/// The rules: component, port, who.
fn rules(plan: &Plan, services: &[Service]) -> Vec<(Component, i32, From)> {
    let mut rules = vec![
        (
            Valkey,
            valkey::CLIENT_PORT,
            From::Only {
                components: needing(services, Service::reaches_engine, Valkey),
                operator: true,
                labelled: None,
            },
        ),
        (Valkey, valkey::BUS_PORT, only(vec![Valkey])),
    ];
    if let KafkaPlan::Managed(managed) = &plan.event_log.kafka {
        rules.push((
            Kafka,
            kafka::INTERNAL_PORT,
            // Business lines' consumers may run in the same Kubernetes cluster. What they may do there, their certificates say.
            From::Only {
                components: needing(services, |service| service.log().is_used(), Kafka),
                operator: true,
                labelled: Some(names::LABEL_EVENT_LOG_CLIENT),
            },
        ));
        rules.push((Kafka, kafka::CONTROLLER_PORT, only(vec![Kafka])));
        if managed.spec.external_access.is_some() {
            rules.push((Kafka, kafka::EXTERNAL_PORT, From::Anyone));
        }
    }
    for service in services.iter().copied() {
        rules.extend(callers(service, services).map(|from| (service.into(), i32::from(service.port()), from)));
        rules.push((service.into(), ADMIN_PORT, From::Anyone));
    }
    rules
}

/// One policy that denies all, and one per component that allows what is needed.
pub fn policies(plan: &Plan) -> Vec<NetworkPolicy> {
    policies_of(plan, &versions::services(&plan.version))
}

/// The same for these services, in the order of the table.
pub fn policies_of(plan: &Plan, services: &[Service]) -> Vec<NetworkPolicy> {
    let mut by_component: BTreeMap<Component, Vec<NetworkPolicyIngressRule>> = BTreeMap::new();
    for (component, port, from) in rules(plan, services) {
        by_component.entry(component).or_default().push(rule(plan, port, &from));
    }
    let everyone: BTreeMap<String, String> = [(names::LABEL_NAME, "kith"), (names::LABEL_INSTANCE, plan.name.as_str())]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
    let deny = policy(format!("{}-default-deny", plan.name), meta::cluster_labels(&plan.name), everyone, Vec::new());
    let allow = by_component.into_iter().map(|(component, rules)| {
        policy(
            meta::component_name(&plan.name, component),
            meta::labels(&plan.name, component),
            meta::selector_labels(&plan.name, component),
            rules,
        )
    });
    std::iter::once(deny).chain(allow).collect()
}

fn policy(
    name: String,
    labels: BTreeMap<String, String>,
    pods: BTreeMap<String, String>,
    ingress: Vec<NetworkPolicyIngressRule>,
) -> NetworkPolicy {
    NetworkPolicy {
        metadata: meta::meta(name, labels),
        spec: Some(NetworkPolicySpec {
            ingress: Some(ingress),
            pod_selector: Some(meta::selector(pods)),
            policy_types: Some(vec!["Ingress".to_owned()]),
            egress: None,
        }),
    }
}

fn rule(plan: &Plan, port: i32, from: &From) -> NetworkPolicyIngressRule {
    let peers = match from {
        From::Anyone => None,
        From::Only { components, operator, labelled } => {
            let mut peers: Vec<NetworkPolicyPeer> = components
                .iter()
                .map(|c| NetworkPolicyPeer {
                    pod_selector: Some(meta::selector(meta::selector_labels(&plan.name, *c))),
                    ..NetworkPolicyPeer::default()
                })
                .collect();
            // The operator may run in any namespace, as may clients.
            let mut anywhere = |label: &str, value: &str| {
                peers.push(NetworkPolicyPeer {
                    namespace_selector: Some(LabelSelector::default()),
                    pod_selector: Some(meta::selector([(label.to_owned(), value.to_owned())].into())),
                    ip_block: None,
                });
            };
            if *operator {
                anywhere(names::LABEL_NAME, names::FIELD_MANAGER);
            }
            if let Some(label) = labelled {
                anywhere(label, &plan.name);
            }
            Some(peers)
        }
    };
    NetworkPolicyIngressRule {
        from: peers,
        ports: Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::Int(port)),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        }]),
    }
}

#[cfg(test)]
mod tests {
    use kith_crds::ChatCluster;
    use serde_json::json;

    use super::*;
    use crate::plan::tests::release;

    #[test]
    fn pods_of_any_namespace_reach_the_brokers_by_their_label_and_nothing_else() {
        let cluster: ChatCluster = serde_json::from_value(json!({
            "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster",
            "metadata": {"name": "demo", "namespace": "ns", "uid": "u-1"}, "spec": {}
        }))
        .expect("a ChatCluster");
        let plan = Plan::resolve(&cluster, &release("0.1.0")).expect("a plan");
        let mut open = Vec::new();
        for policy in policies(&plan) {
            for rule in policy.spec.into_iter().flat_map(|s| s.ingress.unwrap_or_default()) {
                let by_label = |peer: &NetworkPolicyPeer| {
                    let labels = peer.pod_selector.as_ref().and_then(|s| s.match_labels.as_ref());
                    labels.is_some_and(|l| l.get(names::LABEL_EVENT_LOG_CLIENT).is_some_and(|c| c == "demo"))
                        && peer.namespace_selector == Some(LabelSelector::default())
                };
                if rule.from.iter().flatten().any(by_label) {
                    let ports = rule.ports.into_iter().flatten().filter_map(|p| p.port);
                    open.extend(ports.map(|port| (policy.metadata.name.clone().unwrap_or_default(), port)));
                }
            }
        }
        assert_eq!(open, [("demo-kafka".to_owned(), IntOrString::Int(kafka::INTERNAL_PORT))]);
    }
}
