//! Who is who at the managed brokers, and that nobody may do what no right allows.
//!
//! Kafka sees of a certificate its subject alone. A component's is `CN=<component>.<cluster>.kith.internal`, a business line's
//! `CN=<line>,OU=line`: they differ in form, so that a line is no component by any name. Who may do what stands in
//! [`crate::eventlog::rights`].

use k8s_openapi::api::core::v1::ConfigMap;

use super::meta::{Component, DEFAULT_LINE};
use crate::{pki::LINES, plan::Plan};

/// The brokers' settings in their ConfigMap.
pub const FILE: &str = "server.properties";
/// Whoever shows no certificate.
pub const ANONYMOUS: &str = "User:ANONYMOUS";

const ENFORCED: &str = "allow.everyone.if.no.acl.found=false";
const PREPARED: &str = "allow.everyone.if.no.acl.found=true";
const COMPONENT_PREFIX: &str = "service-";
const LINE_PREFIX: &str = "line-";

/// What the brokers do with a call that no right speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// They allow it where a topic or group has no rights at all: brokers that never asked for rights restart with this first, so that
    /// rights can be written before any is needed.
    Prepared,
    /// They refuse it.
    Enforced,
}

/// What brokers are to do that run with `live`. New ones refuse from the beginning, and none that refuses ever allows again.
pub fn enforcement(live: Option<&ConfigMap>, rights_stand: bool) -> Enforcement {
    let settings = live.and_then(|map| map.data.as_ref()).and_then(|data| data.get(FILE));
    match settings {
        Some(settings) if !rights_stand && !settings.lines().any(|line| line == ENFORCED) => Enforcement::Prepared,
        _ => Enforcement::Enforced,
    }
}

/// The principal of a component's certificate.
pub fn component(component: Component) -> String {
    format!("User:{COMPONENT_PREFIX}{}", component.name())
}

/// The principal of a business line's certificate.
pub fn line(name: &str) -> String {
    format!("User:{LINE_PREFIX}{name}")
}

/// Whether the operator decides what this principal may do. Others are nobody's here; what a person gives to them stays.
pub fn is_ours(principal: &str) -> bool {
    let name = principal.strip_prefix("User:").unwrap_or_default();
    principal == ANONYMOUS || name.starts_with(COMPONENT_PREFIX) || name.starts_with(LINE_PREFIX)
}

/// The brokers' settings about rights. Brokers talk to each other, and the operator writes the rights themselves, without any.
pub(super) fn settings(plan: &Plan, enforcement: Enforcement) -> String {
    let stage = match enforcement {
        Enforcement::Prepared => PREPARED,
        Enforcement::Enforced => ENFORCED,
    };
    format!(
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
{stage}
super.users={kafka};{operator}
ssl.principal.mapping.rules={rules}
",
        kafka = component(Component::Kafka),
        operator = component(Component::Operator),
        rules = mapping(plan),
    )
}

/// How the brokers make principals of subjects: the first rule that fits a whole subject. What fits none keeps the subject as its name, which
/// no right speaks of.
fn mapping(plan: &Plan) -> String {
    let cluster = literal(&plan.cluster_name);
    let rules = [
        format!("RULE:^CN=([a-z-]+)[.]{cluster}[.]kith[.]internal$/{COMPONENT_PREFIX}$1/"),
        format!("RULE:^CN=([a-z0-9.-]+),OU={LINES}$/{LINE_PREFIX}$1/"),
        // Certificates that were made before lines had a subject of their own end within 90 days.
        format!("RULE:^CN=kith:..{}.line.{DEFAULT_LINE}$/{LINE_PREFIX}{DEFAULT_LINE}/", literal(&plan.data_uid)),
        "DEFAULT".to_owned(),
    ];
    rules.join(",")
}

/// A pattern of that text alone, without the slashes and backslashes that Kafka's rules and files read otherwise.
fn literal(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c.to_string() } else { "[.]".to_owned() }).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use kith_crds::ChatCluster;
    use regex::Regex;
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    use serde_json::json;
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;
    use crate::{
        chatcluster::{certificate_request, line_request},
        pki::{Authority, LeafRequest},
        plan::tests::release,
    };

    fn plan() -> Plan {
        let cluster: ChatCluster = serde_json::from_value(json!({
            "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster",
            "metadata": {"name": "demo", "namespace": "ns", "uid": "0b5ff6c1-6ee2-4a6e-8c5f-5a0d3c9b7a11"}, "spec": {}
        }))
        .expect("a ChatCluster");
        Plan::resolve(&cluster, &release("0.1.0")).expect("a plan")
    }

    /// The subject of a certificate as Java writes it: the last part first.
    fn subject(pem: &str) -> String {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let (_, cert) = X509Certificate::from_der(&der).expect("a certificate");
        let part = |a: &x509_parser::prelude::AttributeTypeAndValue<'_>| {
            let name = match a.attr_type().to_id_string().as_str() {
                "2.5.4.3" => "CN",
                "2.5.4.11" => "OU",
                other => panic!("{other} is not expected in a subject"),
            };
            format!("{name}={}", a.as_str().expect("text"))
        };
        let parts: Vec<String> = cert.subject().iter_attributes().map(part).collect();
        parts.into_iter().rev().collect::<Vec<_>>().join(",")
    }

    /// What the brokers call whoever has this subject.
    fn principal(plan: &Plan, subject: &str) -> String {
        for rule in mapping(plan).split(",RULE:").flat_map(|rules| rules.split(",DEFAULT")) {
            let rule = rule.trim_start_matches("RULE:");
            if let [pattern, name, ""] = rule.split('/').collect::<Vec<_>>()[..] {
                let pattern = Regex::new(pattern).expect("a pattern");
                if pattern.is_match(subject) {
                    return format!("User:{}", pattern.replace(subject, name.replace("$1", "${1}")));
                }
            }
        }
        format!("User:{subject}")
    }

    fn principal_of(request: &LeafRequest) -> String {
        let (plan, now) = (plan(), Timestamp::now());
        let authority = Authority::generate("demo", &plan.data_uid, now).expect("an authority");
        principal(&plan, &subject(&authority.issue(request, now).expect("a certificate").cert_pem))
    }

    #[test]
    fn brokers_call_every_certificate_by_the_name_that_rights_are_given_to() {
        let plan = plan();
        for each in Component::all() {
            assert_eq!(principal_of(&certificate_request(&plan, each, &[])), component(each));
        }
        assert_eq!(principal_of(&line_request(&plan, DEFAULT_LINE)), line(DEFAULT_LINE));
        // As certificates of the line were before.
        let before = format!("CN=kith://{}/line/default", plan.data_uid);
        assert_eq!(principal(&plan, &before), line(DEFAULT_LINE));
    }

    #[test]
    fn no_name_of_a_business_line_makes_it_a_component_or_another_line() {
        let plan = plan();
        let longest = "l".repeat(64);
        for name in ["storage", "storage.demo.kith.internal", "service-kafka", "kafka", longest.as_str()] {
            assert_eq!(principal_of(&line_request(&plan, name)), line(name));
        }
        // Names that no object has are nobody's, or are not signed at all.
        for name in ["x,OU=line", "storage.demo.kith.internal,CN=y", "../service/storage"] {
            let found = principal_of(&line_request(&plan, name));
            assert!(!is_ours(&found), "{name}: {found}");
        }
        let authority = Authority::generate("demo", &plan.data_uid, Timestamp::now()).expect("an authority");
        for name in [String::new(), "l".repeat(65)] {
            assert!(authority.issue(&line_request(&plan, &name), Timestamp::now()).is_err(), "{name}");
        }
    }

    #[test]
    fn subjects_of_other_clusters_and_forms_are_nobody() {
        let plan = plan();
        for other in [
            "CN=storage.other.kith.internal",
            "CN=storageXdemo.kith.internal",
            "CN=storage.demo.kith.internal.example.com",
            "CN=storage.demo.kith.internal,OU=services",
            "CN=service-kafka",
            "CN=kith://11111111-2222-3333-4444-555555555555/line/default",
            "CN=kith://0b5ff6c1-6ee2-4a6e-8c5f-5a0d3c9b7a11/line/default2",
            "",
        ] {
            let found = principal(&plan, other);
            assert_eq!(found, format!("User:{other}"));
            assert!(!is_ours(&found), "{found}");
        }
        assert!(is_ours(ANONYMOUS) && is_ours(&line("x")) && is_ours(&component(Component::API)));
    }

    #[test]
    fn brokers_deny_by_default_and_only_brokers_and_the_operator_need_no_right() {
        let settings = settings(&plan(), Enforcement::Enforced);
        assert_eq!(
            settings.lines().collect::<Vec<_>>(),
            [
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "allow.everyone.if.no.acl.found=false",
                "super.users=User:service-kafka;User:service-operator",
                "ssl.principal.mapping.rules=RULE:^CN=([a-z-]+)[.]demo[.]kith[.]internal$/service-$1/,\
                 RULE:^CN=([a-z0-9.-]+),OU=line$/line-$1/,\
                 RULE:^CN=kith:..0b5ff6c1-6ee2-4a6e-8c5f-5a0d3c9b7a11.line.default$/line-default/,DEFAULT",
            ]
        );
    }

    #[test]
    fn brokers_that_never_asked_for_rights_get_them_before_they_refuse_and_never_go_back() {
        let map =
            |text: &str| ConfigMap { data: Some([(FILE.to_owned(), text.to_owned())].into()), ..ConfigMap::default() };
        let (open, plan) = (map("process.roles=broker,controller\n"), plan());
        let prepared = map(&settings(&plan, Enforcement::Prepared));
        let enforced = map(&settings(&plan, Enforcement::Enforced));
        for (live, rights_stand, wanted) in [
            (None, false, Enforcement::Enforced),
            (Some(&open), false, Enforcement::Prepared),
            (Some(&prepared), false, Enforcement::Prepared),
            (Some(&prepared), true, Enforcement::Enforced),
            (Some(&enforced), false, Enforcement::Enforced),
            (Some(&enforced), true, Enforcement::Enforced),
        ] {
            assert_eq!(enforcement(live, rights_stand), wanted, "{live:?} {rights_stand}");
        }
    }
}
