//! Every way in which a request can fail becomes a sentence.

use kube::core::response::{StatusCause, StatusDetails};

use super::*;
use crate::apply::ApplyError;

fn api(code: u16, reason: &str, message: &str) -> Error {
    // As the API server sends it, with the details that only machines need.
    let cause = StatusCause { reason: "FieldValueInvalid".into(), message: "{raw}".into(), field: "spec".into() };
    let details = StatusDetails {
        name: "x".into(),
        group: String::new(),
        kind: "services".into(),
        uid: String::new(),
        causes: vec![cause],
        retry_after_seconds: 0,
    };
    Error::Api(Status::failure(message, reason).with_code(code).with_details(details).boxed())
}

fn service(error: impl Into<tower::BoxError>) -> Error {
    Error::Service(error.into())
}

/// As the HTTP client wraps it.
#[derive(Debug, thiserror::Error)]
#[error("client error (Connect)")]
struct Connect(#[source] std::io::Error);

fn refused() -> Error {
    service(Connect(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)))
}

/// Kind, what happened, and what the sentence must hold.
fn cases() -> Vec<(&'static str, Error, &'static [&'static str])> {
    vec![
        (
            "Service",
            api(
                422,
                "Invalid",
                "Service \"demo-edge-api\" is invalid: spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated",
            ),
            &["30080: provided port is already allocated", "the port is taken: choose another nodePort"],
        ),
        (
            "HTTPRoute",
            api(404, "Failed to parse error data", "404 page not found"),
            &["does not know the kind HTTPRoute", "definitions of the Gateway API", "exposure.ingress"],
        ),
        (
            "StorageShard",
            api(404, "Failed to parse error data", "404 page not found"),
            &["does not know the kind StorageShard", "chart kith-crds"],
        ),
        (
            "Deployment",
            api(
                422,
                "Invalid",
                "Deployment.apps \"demo-storage\" is invalid: spec.template.labels: Invalid value: \"a b\": a valid label must be an empty string or consist of alphanumeric characters",
            ),
            &["spec.template.labels: Invalid value: \"a b\"", "correct the field that it names"],
        ),
        (
            "Deployment",
            api(
                422,
                "Invalid",
                "Deployment.apps \"demo\" is invalid: spec.selector: Invalid value: v1.LabelSelector{MatchLabels:map[string]string{\"a\":\"b\"}, MatchExpressions:[]v1.LabelSelectorRequirement(nil)}: field is immutable",
            ),
            &["spec.selector: Invalid value: …: field is immutable", "the field cannot change"],
        ),
        (
            "Secret",
            api(
                403,
                "Forbidden",
                "secrets \"demo-ca\" is forbidden: exceeded quota: small, requested: secrets=1, used: secrets=3, limited: secrets=3",
            ),
            &["exceeded quota: small", "raise the namespace's ResourceQuota"],
        ),
        (
            "Secret",
            api(
                403,
                "Forbidden",
                "secrets is forbidden: User \"system:serviceaccount:kith-system:kith-operator\" cannot list resource \"secrets\" in API group \"\" in the namespace \"a\"",
            ),
            &["cannot list resource \"secrets\"", "chart kith-operator", "add the right to its role"],
        ),
        (
            "Pod",
            api(403, "Forbidden", "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot"),
            &["Pod Security level forbids it"],
        ),
        ("Pod", api(403, "Forbidden", "admission webhook \"x\" denied the request: no"), &["a rule of the cluster"]),
        (
            "ConfigMap",
            api(409, "Conflict", "Operation cannot be fulfilled on configmaps \"a\": the object has been modified"),
            &["the object has been modified", "it is tried again"],
        ),
        ("ConfigMap", api(409, "AlreadyExists", "configmaps \"a\" already exists"), &["it is tried again"]),
        ("Service", api(404, "NotFound", "services \"a\" not found"), &["services \"a\" not found"]),
        ("Service", api(401, "Unauthorized", "Unauthorized"), &["ServiceAccount and token"]),
        ("Service", api(400, "BadRequest", "bad field"), &["correct the field"]),
        ("ConfigMap", api(413, "RequestEntityTooLarge", "limit is 3145728"), &["shorten"]),
        ("Pod", api(429, "TooManyRequests", "slow down"), &["too much to do"]),
        ("Pod", api(410, "Expired", "too old resource version"), &["tried again"]),
        ("Pod", api(504, "Timeout", "request did not complete in time"), &["did not complete in time", "tried again"]),
        (
            "Pod",
            api(500, "InternalError", "failed calling webhook \"a\": Post https://a:443/b: EOF"),
            &["failed calling webhook", "admission webhooks of the cluster"],
        ),
        ("Pod", api(503, "", ""), &["status 503, without a reason"]),
        ("Pod", service("the API server did not answer in time"), &["did not answer in time", "control plane runs"]),
        ("Pod", refused(), &["connection refused", "control plane runs"]),
        ("Pod", service("dns error: failed to lookup address information"), &["cannot be resolved"]),
        ("Pod", service("invalid peer certificate: Expired"), &["certificate is not accepted"]),
        ("Pod", service("broken pipe"), &["broken pipe", "tried again"]),
        ("Pod", Error::ReadEvents(std::io::Error::other("reset")), &["reset"]),
        (
            "Pod",
            Error::SerdeError(serde_json::from_str::<u8>("{}").unwrap_err()),
            &["answer cannot be read", "version is one that this operator supports"],
        ),
        ("Pod", Error::HttpError(http_error()), &["report it as a fault"]),
        ("Pod", Error::LinesCodecMaxLineLengthExceeded, &["could not be asked"]),
        ("Pod", Error::TlsRequired, &["could not be asked"]),
    ]
}

fn http_error() -> axum::http::Error {
    axum::http::Request::builder().uri("http://a b").body(()).unwrap_err()
}

/// What tells that somebody wrote a value out instead of a sentence.
const RAW: [&str; 8] = ["{", "}", "Status {", "ApiError", "Some(", "map[", "Error(", "\n"];

#[test]
fn every_way_a_request_can_fail_is_told_in_words_and_with_what_to_do() {
    for (kind, error, wanted) in cases() {
        let sentence = ApplyError::Kube { kind: kind.to_owned(), name: "demo-x".to_owned(), source: Box::new(error) };
        let sentence = sentence.to_string();
        assert!(sentence.starts_with(&format!("{kind} demo-x: ")), "{sentence}");
        for part in wanted {
            assert!(sentence.contains(part), "`{part}` is not in: {sentence}");
        }
        for raw in RAW {
            assert!(!sentence.contains(raw), "`{raw}` is in: {sentence}");
        }
    }
}

#[test]
fn the_other_errors_of_the_write_step_are_sentences_as_well() {
    let (kind, name) = ("Service".to_owned(), "a".to_owned());
    let all = [
        ApplyError::NameTaken { kind: kind.clone(), name: name.clone(), owner: "ChatCluster demo".to_owned() },
        ApplyError::Terminating { kind: kind.clone(), name: name.clone() },
        ApplyError::Json { kind, name, source: serde_json::from_str::<u8>("{}").unwrap_err() },
    ];
    for error in all {
        let sentence = error.to_string();
        assert!(sentence.starts_with("Service a"), "{sentence}");
        assert!(RAW.iter().all(|raw| !sentence.contains(raw)), "{sentence}");
    }
}

#[test]
fn a_long_or_many_lined_text_becomes_a_part_of_one_sentence() {
    assert_eq!(plain(" a\n\tb  c.\n"), "a b c");
    assert_eq!(plain("spec: Invalid value: &Quota{a: [1]} wrong"), "spec: Invalid value: … wrong");
    assert_eq!(plain("spec.x[0].name: {\"a\":{}}: bad"), "spec.x[0].name: …: bad");
    assert!(plain(&"word ".repeat(1_000)).len() < 700);
    assert_eq!(plain("unbalanced } here"), "unbalanced here");
}
