//! What the engine's answer to a call means: done, fenced, elsewhere, or refused.

use std::time::Duration;

use redis::Value;

use crate::engine::{EngineError, Refusal};

/// What an answer means for its call.
pub(in crate::engine::valkey) enum Verdict {
    Done(Vec<Value>),
    /// The claim is not the partition's; who holds it, if known.
    Fenced(Option<String>),
    /// The slot is not (or no longer) this node's, or the node is no primary.
    Elsewhere,
    Refused(EngineError),
}

/// Reads the answer to a call.
pub(in crate::engine::valkey) fn verdict(value: Value) -> Verdict {
    let error = match value {
        Value::Array(values) => return Verdict::Done(values),
        Value::ServerError(error) => error,
        other => return Verdict::Done(vec![other]),
    };
    let detail = error.details().unwrap_or_default();
    match error.code() {
        "FENCED" => Verdict::Fenced((!detail.is_empty()).then(|| detail.to_owned())),
        "MOVED" | "ASK" | "READONLY" | "CLUSTERDOWN" | "TRYAGAIN" | "MASTERDOWN" => Verdict::Elsewhere,
        "NOREPLICAS" => Verdict::Refused(EngineError::Unavailable(
            "too few replicas of the storage engine are in sync: nothing was stored, try again".into(),
        )),
        "LOADING" | "BUSY" | "MISCONF" => Verdict::Refused(EngineError::Unavailable(
            "the storage engine is not ready: nothing was stored, try again".into(),
        )),
        "OOM" => {
            Verdict::Refused(EngineError::Exhausted("the storage engine's memory is full", Duration::from_secs(10)))
        }
        "K1REFUSE" => Verdict::Refused(refusal(detail)),
        "K1CONFLICT" => Verdict::Refused(EngineError::Conflict),
        "K1FOREIGN" => {
            tracing::error!(found = detail, "the storage engine holds data of another ChatCluster or layout");
            let what = format!("the storage engine holds data of another ChatCluster or layout ({detail})");
            Verdict::Refused(EngineError::DataLoss(what))
        }
        "K1CORRUPT" => Verdict::Refused(EngineError::DataLoss(format!("{detail}: not what was written"))),
        // Credentials that are being rotated, a library that is not loaded yet: nothing was done, and it passes.
        code @ ("NOAUTH" | "WRONGPASS" | "NOPERM") => Verdict::Refused(not_ready(code, detail)),
        code if detail.contains("Function not found") => Verdict::Refused(not_ready(code, detail)),
        // A function that fails does so again: a retry would only fail more often.
        code => {
            tracing::error!(code, detail, "the storage engine failed at a call");
            Verdict::Refused(EngineError::Internal)
        }
    }
}

fn not_ready(code: &str, detail: &str) -> EngineError {
    tracing::warn!(code, detail, "the storage engine does not take a call");
    EngineError::Unavailable("the storage engine is not ready: nothing was stored, try again".into())
}

fn refusal(why: &str) -> EngineError {
    EngineError::Refused(match why {
        "NO_CONVERSATION" => Refusal::NoConversation,
        "NOT_MEMBER" => Refusal::NotMember,
        "BLOCKED" => Refusal::Blocked,
        "MUTED" => Refusal::Muted,
        "DISSOLVED" => Refusal::Dissolved,
        "HOT_LIMIT" => Refusal::HotLimit,
        "NOT_ABOVE" => Refusal::NotAbove,
        "NO_USER" => Refusal::NoUser,
        "FULL" => Refusal::Full,
        other => return EngineError::DataLoss(format!("an unknown refusal of the function library: {other}")),
    })
}
