//! Tables of the documentation.

use super::Part;
use crate::{EventLog, Keys, Serves, Service};

const BEGIN: &str = "<!-- services: written by `cargo servicegen` from services/platform -->";
const END: &str = "<!-- end of services -->";
const BEGIN_RIGHTS: &str = "<!-- rights: written by `cargo servicegen` from services/platform -->";
const END_RIGHTS: &str = "<!-- end of rights -->";

/// The tables of `docs/names.md`.
pub(super) fn names() -> Vec<Part> {
    let mut services = "| service | layer | port | serves | called by | reaches | runs as |\n\
                        | --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    let mut rights = "| principal | may |\n| --- | --- |\n".to_owned();
    for service in Service::ALL.iter().copied() {
        services.push_str(&row(service));
        if service.log().is_used() {
            rights.push_str(&format!("| `User:service-{}` | {} |\n", service.name(), may(service.log())));
        }
    }
    vec![
        Part { begin: BEGIN, end: END, content: services },
        Part { begin: BEGIN_RIGHTS, end: END_RIGHTS, content: rights },
    ]
}

fn row(service: Service) -> String {
    let name = service.name();
    let (serves, object) = match service.serves() {
        Serves::Nobody => ("nobody", format!("Deployment `demo-{name}`")),
        Serves::Platform(_) => ("other services: gRPC, mTLS", format!("Deployment and headless Service `demo-{name}`")),
        Serves::Lines(_) => {
            ("business lines: gRPC, mTLS or a bearer key", format!("Deployment and Service `demo-{name}`"))
        }
        Serves::Clients => {
            ("clients, at a Gateway", format!("Deployment and Service `demo-edge-{name}` of a Gateway `edge`"))
        }
    };
    let port = if service.listens() { service.port().to_string() } else { String::new() };
    let callers: Vec<String> = Service::ALL
        .iter()
        .filter(|caller| caller.calls(service))
        .map(|caller| format!("`{}`", caller.name()))
        .collect();
    let reaches = [
        (service.reaches_engine(), "engine"),
        (service.log().is_used(), "event log"),
        (service.keys() == Keys::Signs, "token keys"),
        (service.keys() == Keys::Checks, "public token keys"),
    ];
    let reaches: Vec<&str> = reaches.into_iter().filter_map(|(does, what)| does.then_some(what)).collect();
    format!(
        "| `{name}` | {} | {port} | {serves} | {} | {} | {object} |\n",
        service.layer().name(),
        callers.join(", "),
        reaches.join(", ")
    )
}

/// What a service may do on the event log, in words.
fn may(log: &EventLog) -> String {
    let mut all = Vec::new();
    all.extend(log.writes.iter().map(|topic| format!("write `<cluster>.{topic}`")));
    all.extend(log.scans.iter().map(|topic| format!("read `<cluster>.{topic}`")));
    all.extend(log.consumes.iter().map(|of| {
        let (group, topic) = (of.group, of.topic);
        format!(
            "read `<cluster>.{topic}` in the group `<cluster>.{group}`; make, read and write `<cluster>.{group}.marks`"
        )
    }));
    all.extend(log.makes.iter().map(|topic| format!("make and write `<cluster>.{topic}`")));
    all.join("; ")
}
