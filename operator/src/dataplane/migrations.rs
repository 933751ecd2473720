//! `CLUSTER GETSLOTMIGRATIONS`: what a node remembers of its slot migrations. It only informs; ownership decides. Pure but for
//! the question.

use std::collections::HashMap;

use redis::Value;

use super::{
    apply::node_of,
    link::{LinkError, Links},
    parse::{self, ParseError},
    slots::SlotSet,
    types::{Desired, NodeId, NodeView, Observation},
};

/// One migration as a node reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its name.
    pub name: String,
    /// Whether this node gives the slots (else it takes them).
    pub export: bool,
    /// The slots.
    pub slots: SlotSet,
    /// Who takes them.
    pub target: Option<NodeId>,
    /// The engine's word for where it stands.
    pub state: String,
    /// What went wrong, if anything.
    pub message: String,
}

impl Job {
    /// Whether the giver has let go of the slots, or may at any moment: what was begun then can only be waited for. Cancelled, the
    /// giver would go on with writes that the taker has never heard of.
    pub fn is_final(&self) -> bool {
        self.export && matches!(self.state.as_str(), "failover-paused" | "failover-granted")
    }

    /// Whether it came to a good end.
    pub fn is_done(&self) -> bool {
        self.state == "success"
    }

    /// Whether it still runs.
    pub fn is_active(&self) -> bool {
        !matches!(self.state.as_str(), "success" | "failed" | "canceled" | "cancelled")
    }
}

/// What primaries report.
pub type Jobs = Vec<(NodeId, Vec<Job>)>;

/// Asks the primaries that answered at the last look, as far as they are `meant`.
pub async fn ask(
    links: &Links,
    desired: &Desired,
    seen: &Observation,
    meant: impl Fn(&NodeView) -> bool,
) -> Result<Jobs, LinkError> {
    let mut question = redis::cmd("CLUSTER");
    question.arg("GETSLOTMIGRATIONS");
    let mut all = Vec::new();
    for (node, state) in seen.up().filter(|(node, state)| state.is_primary() && meant(node)) {
        if let Some((address, _)) = node_of(desired, seen, &node.pod) {
            all.push((state.id.clone(), jobs(&links.ask_one(address, &question).await?)?));
        }
    }
    Ok(all)
}

/// Reads the answer.
fn jobs(answer: &Value) -> Result<Vec<Job>, ParseError> {
    let malformed = |part: &str| ParseError { command: "CLUSTER GETSLOTMIGRATIONS", part: part.to_owned() };
    parse::array(answer)
        .ok_or_else(|| malformed("the answer"))?
        .iter()
        .map(|job| {
            let fields: HashMap<String, &Value> = parse::pairs(job).into_iter().collect();
            let field = |name: &str| fields.get(name).and_then(|v| parse::text(v));
            let ranges = field("slot_ranges").ok_or_else(|| malformed("slot_ranges"))?;
            Ok(Job {
                name: field("name").ok_or_else(|| malformed("name"))?,
                export: field("operation").is_some_and(|o| o.eq_ignore_ascii_case("export")),
                slots: ranges_of(&ranges).ok_or_else(|| malformed("slot_ranges"))?,
                target: field("target_node").and_then(|id| NodeId::parse(&id)),
                state: field("state").ok_or_else(|| malformed("state"))?,
                message: field("message").unwrap_or_default(),
            })
        })
        .collect()
}

/// `0-99 200 300-310`, or with commas.
pub fn ranges_of(text: &str) -> Option<SlotSet> {
    let mut ranges = Vec::new();
    for part in text.split([' ', ',']).filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        ranges.push((first.parse().ok()?, last.parse().ok()?));
    }
    Some(SlotSet::from_ranges(ranges))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn jobs_are_read_and_damage_is_an_error() {
        let fields = [
            "name",
            "j1",
            "operation",
            "EXPORT",
            "slot_ranges",
            "500-600 700-800",
            "target_node",
            "x",
            "state",
            "snapshotting",
        ];
        let answer = Value::Array(vec![Value::Array(fields.map(text).to_vec())]);
        let found = jobs(&answer).expect("well-formed");
        assert!(found[0].is_active() && found[0].export);
        assert_eq!(found[0].slots.to_string(), "500-600,700-800");
        assert!(!found[0].is_final() && Job { state: "failover-granted".to_owned(), ..found[0].clone() }.is_final());
        assert!(jobs(&Value::Array(vec![Value::Array(fields[..4].iter().map(|f| text(f)).collect())])).is_err());
        assert!(jobs(&Value::Okay).is_err());
    }
}
