//! The status step of a Gateway. Pure.

use k8s_openapi::{
    api::core::v1::{Pod, Service},
    jiff::Timestamp,
};
use kith_crds::{
    Gateway, GatewayStatus,
    conditions::{self, Finding, reason},
    gateway::{Addresses, ListenerStatus},
};
use kube::ResourceExt;

use super::render::{self, API_PORT, WEBSOCKET_PORT};
use crate::{
    apply::Live,
    certificates::{self, Certificate},
    chatcluster::{address, node_of},
    render::meta::Component,
    workload::Rollout,
};

/// What a pass found.
#[derive(Default)]
pub struct Facts {
    /// Listeners: which, how far, whether a change waits for the layer below.
    pub listeners: Vec<(Component, Option<Rollout>, bool)>,
    /// Services by name.
    pub services: Live<Service>,
    /// The Gateway's pods.
    pub pods: Live<Pod>,
    /// What keeps its pods from running.
    pub trouble: Option<(&'static str, String)>,
    /// Whether it waits for the layer below.
    pub waiting: bool,
    /// When the certificates that clients are shown end; absent: not looked at.
    pub certificates: Option<Vec<Certificate>>,
    /// Why the Secret with the certificate for clients cannot be used.
    pub secret: Option<(&'static str, String)>,
    /// Whether pods are not made or changed for that.
    pub held: bool,
    /// What ended the pass early.
    pub failure: Option<Finding>,
}

/// The status that follows; what was not looked at stays as it was.
pub fn status(gateway: &Gateway, facts: &Facts, now: Timestamp) -> GatewayStatus {
    let mut status = gateway.status.clone().unwrap_or_default();
    let generation = gateway.metadata.generation;
    status.observed_generation = generation;
    if !facts.listeners.is_empty() {
        let of = |component| facts.listeners.iter().find(|(c, _, _)| *c == component).map(|(_, r, _)| listener(*r));
        status.api = of(Component::API);
        status.websocket = of(Component::GATEWAY);
        status.addresses = Some(addresses(gateway, facts));
    }
    let expiring = facts.certificates.as_ref().and_then(|certificates| {
        let before = conditions::get(&status.conditions, conditions::CERTIFICATE_EXPIRING);
        certificates::finding(certificates, before, now)
    });
    for finding in [ready(facts), progressing(facts)].into_iter().chain(expiring) {
        conditions::set(&mut status.conditions, finding, generation, now);
    }
    status
}

fn listener(rollout: Option<Rollout>) -> ListenerStatus {
    let rollout = rollout.unwrap_or_default();
    ListenerStatus { replicas: rollout.wanted, ready_replicas: rollout.ready }
}

fn addresses(gateway: &Gateway, facts: &Facts) -> Addresses {
    let exposure = &gateway.spec.exposure;
    let named = exposure
        .ingress
        .as_ref()
        .map(|i| (i.host.clone(), i.tls_secret_ref.is_some()))
        .or_else(|| exposure.http_route.as_ref().and_then(|r| Some((r.hostnames.first()?.clone(), true))));
    let of = |component: Component, port: i32| {
        let name = gateway.component_name(component.name());
        let service = facts.services.get(&name)?;
        let inside = format!("{name}.{}.svc:{port}", gateway.namespace().unwrap_or_default());
        Some((address(service, node_of(&facts.pods, component), inside), render::is_secure(service)))
    };
    let url = |plain: &str, secure: &str, component, port, path: &str| {
        let (host, tls) = of(component, port)?;
        let (host, tls) = named.clone().unwrap_or((host, tls));
        Some(format!("{}://{host}{path}", if tls { secure } else { plain }))
    };
    Addresses {
        api: url("http", "https", Component::API, API_PORT, ""),
        websocket: url("ws", "wss", Component::GATEWAY, WEBSOCKET_PORT, "/v1/connect"),
    }
}

fn ready(facts: &Facts) -> Finding {
    let kind = conditions::READY;
    if let Some(failure) = &facts.failure {
        return Finding { kind, ..failure.clone() };
    }
    let missing = facts.listeners.iter().find(|(_, r, _)| r.is_none_or(|r| r.ready < r.wanted || r.ready == 0));
    if let Some((word, sentence)) = facts.secret.as_ref().filter(|_| facts.held || missing.is_some()) {
        return Finding::fails(kind, word, sentence.clone());
    }
    match missing {
        None if !facts.listeners.is_empty() => Finding::holds(kind, reason::ALL_READY, "clients can connect"),
        Some((component, Some(rollout), _)) => match &facts.trouble {
            Some((word, sentence)) => Finding::fails(kind, word, sentence.clone()),
            None => Finding::fails(
                kind,
                reason::PODS_NOT_READY,
                format!("{}: {} of {} pods serve", component.name(), rollout.ready, rollout.wanted),
            ),
        },
        _ if facts.waiting => Finding::fails(
            kind,
            reason::WAITING_FOR_LAYER_BELOW,
            "the Gateway is started when the layers below are rolled out (status.rolledOut of the ChatCluster)",
        ),
        _ => Finding::fails(kind, reason::STARTING, "the Gateway's pods are being made"),
    }
}

fn progressing(facts: &Facts) -> Finding {
    let kind = conditions::PROGRESSING;
    if let Some(failure) = &facts.failure {
        return Finding::fails(kind, failure.reason, failure.message.clone());
    }
    if let Some((word, sentence)) = &facts.secret {
        let sentence =
            format!("{sentence}; until then pods that run go on with what they have, and none is made or changed");
        return Finding::fails(kind, word, sentence);
    }
    if facts.waiting {
        return Finding::holds(
            kind,
            reason::WAITING_FOR_LAYER_BELOW,
            "a change waits until the layers below are rolled out",
        );
    }
    match facts.listeners.iter().find(|(_, r, _)| r.is_none_or(|r| !r.done)) {
        Some((component, _, _)) => {
            Finding::holds(kind, reason::ROLLING_OUT, format!("{} is being rolled out", component.name()))
        }
        None => Finding::fails(kind, reason::IDLE, "nothing is under way"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn gateway() -> Gateway {
        let spec = json!({"clusterRef": {"name": "demo"}, "tls": {"secretRef": {"name": "web"}}});
        let metadata = json!({"name": "edge", "namespace": "ns", "generation": 2});
        serde_json::from_value(json!({
            "apiVersion": kith_crds::API_VERSION, "kind": "Gateway", "metadata": metadata, "spec": spec
        }))
        .unwrap()
    }

    fn service(name: &str, port: &str) -> (String, Service) {
        let spec = json!({"type": "ClusterIP", "ports": [{"name": port, "port": 1}]});
        (name.to_owned(), serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
    }

    fn facts(ready: u32) -> Facts {
        let rollout = Rollout { wanted: 2, ready, newest: true, done: true };
        Facts {
            listeners: vec![(Component::API, Some(rollout), false), (Component::GATEWAY, Some(rollout), false)],
            services: [service("demo-edge-api", "https"), service("demo-edge-gateway", "wss")].into(),
            ..Facts::default()
        }
    }

    fn said(facts: &Facts, kind: &str) -> (String, String, String) {
        let status = status(&gateway(), facts, Timestamp::UNIX_EPOCH);
        let condition = conditions::get(&status.conditions, kind).unwrap();
        (condition.status.clone(), condition.reason.clone(), condition.message.clone())
    }

    #[test]
    fn addresses_say_what_is_spoken_behind_them_and_not_what_is_still_wanted() {
        let mut facts = facts(2);
        let addresses = |facts: &Facts| status(&gateway(), facts, Timestamp::UNIX_EPOCH).addresses.unwrap();
        let of =
            |api: &str, websocket: &str| Addresses { api: Some(api.to_owned()), websocket: Some(websocket.to_owned()) };
        assert_eq!(
            addresses(&facts),
            of("https://demo-edge-api.ns.svc:8080", "wss://demo-edge-gateway.ns.svc:8081/v1/connect")
        );
        facts.services = [service("demo-edge-api", "http"), service("demo-edge-gateway", "ws")].into();
        assert_eq!(
            addresses(&facts),
            of("http://demo-edge-api.ns.svc:8080", "ws://demo-edge-gateway.ns.svc:8081/v1/connect")
        );
    }

    #[test]
    fn a_missing_secret_is_said_and_clients_of_pods_that_run_can_connect_all_the_same() {
        let mut facts = facts(2);
        facts.secret = Some((reason::SECRET_NOT_FOUND, "Secret web is not there".to_owned()));
        assert_eq!(said(&facts, conditions::READY).0, "True");
        let (status, word, message) = said(&facts, conditions::PROGRESSING);
        assert_eq!((status.as_str(), word.as_str()), ("False", reason::SECRET_NOT_FOUND));
        assert!(message.contains("Secret web is not there; until then"), "{message}");
        facts.held = true;
        assert_eq!(said(&facts, conditions::READY).1, reason::SECRET_NOT_FOUND, "what is asked for is not in force");
        facts.held = false;
        facts.listeners[1].1 = None;
        let (status, word, message) = said(&facts, conditions::READY);
        assert_eq!((status.as_str(), word.as_str()), ("False", reason::SECRET_NOT_FOUND));
        assert_eq!(message, "Secret web is not there");
    }
}
