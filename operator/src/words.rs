//! What a failed request to the API server says, in plain sentences for conditions and Events: what was refused, why, what to do. Pure.

use kube::{
    Error,
    core::{Status, response::reason},
};

/// What the operator does about trouble that passes.
const AGAIN: &str = "it is tried again";
/// The longest of the API server's own words kept; the condition as a whole is bounded anyway.
const SAID_BYTES_MAX: usize = 600;

/// Why a request about an object of this kind failed, and what to do about it.
pub fn of(kind: &str, error: &Error) -> String {
    match error {
        Error::Api(status) => answered(kind, status),
        Error::Service(error) => unanswered(&innermost(error.as_ref())),
        Error::HyperError(error) => unanswered(&innermost(error)),
        Error::ReadEvents(error) => unanswered(&error.to_string()),
        Error::SerdeError(error) => format!(
            "the API server's answer cannot be read ({}): check that its version is one that this operator supports",
            plain(&error.to_string())
        ),
        Error::BuildRequest(_) | Error::HttpError(_) => {
            format!(
                "the request could not be made ({}): check the names in the spec, and report it as a fault of the operator",
                plain(&innermost(error))
            )
        }
        Error::Auth(_) => format!(
            "the operator's credentials cannot be used ({}): check its ServiceAccount and token",
            plain(&innermost(error))
        ),
        other => format!("the API server could not be asked ({}); {AGAIN}", plain(&innermost(other))),
    }
}

/// The API server gave an answer.
fn answered(kind: &str, status: &Status) -> String {
    let said = said(status);
    // What no handler knows is answered in plain text, which is no Status.
    if status.code == 404 && status.reason != reason::NOT_FOUND {
        return unknown_kind(kind);
    }
    let advice = match (status.reason.as_str(), status.code) {
        (reason::INVALID, _) | (_, 422) => invalid(&said),
        (reason::FORBIDDEN, _) | (_, 403) => forbidden(&said),
        (reason::UNAUTHORIZED, _) | (_, 401) => "check the operator's ServiceAccount and token",
        (reason::ALREADY_EXISTS | reason::CONFLICT, _) | (_, 409) => {
            "somebody else wrote it at the same moment; it is tried again"
        }
        (reason::NOT_FOUND, _) => "it is made again where it is the operator's",
        (reason::REQUEST_ENTITY_TOO_LARGE, _) | (_, 413) => "shorten what the spec puts into it",
        (
            reason::BAD_REQUEST | reason::METHOD_NOT_ALLOWED | reason::NOT_ACCEPTABLE | reason::UNSUPPORTED_MEDIA_TYPE,
            _,
        )
        | (_, 400 | 405 | 406 | 415) => "correct the field that it names, in the spec that it comes from",
        (reason::TOO_MANY_REQUESTS, _) | (_, 429) => "the API server has too much to do; it is tried again",
        (reason::GONE | reason::EXPIRED, _) | (_, 410) => AGAIN,
        (_, 500..) => "check the API server and the admission webhooks of the cluster; it is tried again",
        _ => AGAIN,
    };
    format!("the API server says: {said}; {advice}")
}

/// The words of the API server, without what is no sentence.
fn said(status: &Status) -> String {
    let said = plain(&status.message);
    if said.is_empty() { format!("status {}, without a reason", status.code) } else { said }
}

fn unknown_kind(kind: &str) -> String {
    let advice = match kind {
        "HTTPRoute" => {
            "install the custom resource definitions of the Gateway API (group gateway.networking.k8s.io), or remove exposure.httpRoute and use exposure.ingress or a load balancer"
        }
        "ChatCluster" | "StorageShard" | "Gateway" | "ShardRebalance" | "BusinessLine" => {
            "install the chart kith-crds of this operator's version"
        }
        "HorizontalPodAutoscaler" => {
            "the API server must serve autoscaling/v2: remove autoscaling, or use a newer Kubernetes"
        }
        _ => "use a Kubernetes version that this operator supports, or install what brings the kind",
    };
    format!("the API server does not know the kind {kind}: {advice}")
}

fn invalid(said: &str) -> &'static str {
    if said.contains("already allocated") {
        return "the port is taken: choose another nodePort in the spec, or leave it out and Kubernetes chooses";
    }
    if said.contains("field is immutable") || said.contains("updates to statefulset spec") {
        return "the field cannot change: take the change in the spec back, or delete the object and it is made anew";
    }
    "correct the field that it names, in the spec that it comes from"
}

/// What to do about an object that the cluster's rules refuse.
pub fn forbidden(said: &str) -> &'static str {
    if said.contains("exceeded quota") || said.contains("failed quota") {
        return "raise the namespace's ResourceQuota, or ask for less in the spec";
    }
    if said.contains("LimitRange") || said.contains("usage per") {
        return "raise the namespace's LimitRange, or ask for resources within it in the spec";
    }
    if said.contains("PodSecurity") {
        return "the namespace's Pod Security level forbids it: lower the level, or remove from the spec what it names";
    }
    if said.contains(" cannot ") {
        return "the operator lacks this right: install the chart kith-operator of this operator's version, or add the right to its role";
    }
    if said.contains("being terminated") {
        return "the namespace is going away";
    }
    "a rule of the cluster forbids it: change the rule, or what the spec asks for"
}

/// There was no answer.
fn unanswered(why: &str) -> String {
    let lower = why.to_ascii_lowercase();
    let what = if lower.contains("refused") {
        "nobody listens at the API server's address (connection refused)".to_owned()
    } else if lower.contains("did not answer in time") || lower.contains("timed out") || lower.contains("deadline") {
        "the API server did not answer in time".to_owned()
    } else if lower.contains("certificate") {
        return format!(
            "the API server's certificate is not accepted ({}): check the operator's CA and the clocks",
            plain(why)
        );
    } else if lower.contains("dns") || lower.contains("lookup") || lower.contains("resolve") {
        format!("the API server's name cannot be resolved ({})", plain(why))
    } else {
        format!("the connection to the API server failed ({})", plain(why))
    };
    format!("{what}: check that the control plane runs and that the operator can reach it; {AGAIN}")
}

/// The cause at the bottom: what is around it only says that there was one.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    while let Some(below) = at.source() {
        at = below;
    }
    at.to_string()
}

/// A text as part of one sentence: on one line, without objects written out, without an end of its own, and not too long.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut depth = 0_u32;
    for c in text.chars() {
        if c == '{' || c == '[' && depth > 0 {
            if depth == 0 {
                cut_type(&mut out);
                out.push('…');
            }
            depth += 1;
        } else if depth > 0 {
            depth -= u32::from(c == '}' || c == ']');
        } else if c.is_whitespace() || c.is_control() {
            if !out.is_empty() && !out.ends_with(' ') {
                out.push(' ');
            }
        } else if c != '}' {
            out.push(c);
        }
        if out.len() > SAID_BYTES_MAX {
            out.push('…');
            break;
        }
    }
    out.trim_end_matches(|c: char| c.is_whitespace() || c == '.').to_owned()
}

/// Takes away the type's name that stands before a value that was written out: `v1.LabelSelector{…}`, `map[string]string{…}`.
fn cut_type(out: &mut String) {
    let begin = out.rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let word = &out[begin..];
    if !word.ends_with(':') && word.contains(['.', '[', '&']) {
        out.truncate(begin);
    }
}

#[cfg(test)]
mod tests;
