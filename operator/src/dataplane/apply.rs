//! Carries out actions: one command to one verified node each, under the lease.

use std::net::SocketAddr;

use redis::Cmd;
use thiserror::Error;

use super::{
    link::{LinkError, Links},
    mark,
    plan::Action,
    types::{Desired, NodeId, Observation, Problem, Reason},
    wanted,
};
use crate::lease::LeaseGuard;

/// An action that failed, with what it was.
#[derive(Debug, Error)]
#[error("{what}: {source}")]
pub struct ApplyError {
    /// The command, as a person would type it.
    pub what: String,
    /// Why it failed.
    pub source: LinkError,
}

impl ApplyError {
    /// For conditions.
    pub fn problem(&self) -> Problem {
        Problem::new(Reason::CommandFailed, format!("{self}"))
    }
}

fn command(words: &[&str]) -> Cmd {
    let mut command = redis::cmd(words.first().copied().unwrap_or("PING"));
    for word in words.iter().skip(1) {
        command.arg(*word);
    }
    command
}

/// The node that a pod was in the observation.
pub fn node_of(desired: &Desired, seen: &Observation, pod: &str) -> Option<(SocketAddr, NodeId)> {
    let address = desired.member(pod)?.1.address?;
    Some((address, seen.state(pod)?.id.clone()))
}

/// Carries out `actions` in order and stops at the first that fails: what follows may rest on it.
pub async fn apply(
    links: &Links,
    guard: &LeaseGuard,
    desired: &Desired,
    seen: &Observation,
    actions: &[Action],
) -> Result<(), ApplyError> {
    let mut failed = Ok(());
    for action in actions {
        for (pod, words) in commands(desired, action) {
            let Some((address, id)) = node_of(desired, seen, &pod) else { continue };
            if let Action::Meet { address: other, .. } = action
                && !links.may_introduce(address, *other).await
            {
                continue;
            }
            let shown = shown(&pod, &words);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match links.write(address, &id, &command(&words), guard).await {
                Ok(_) => tracing::info!(cluster = %desired.cluster, command = %shown, "data plane changed"),
                // Each of these is for itself, and what was changed for one is changed back.
                Err(source) if matches!(action, Action::Tell { .. }) => {
                    failed = failed.and(Err(ApplyError { what: shown, source }));
                }
                Err(source) => return Err(ApplyError { what: shown, source }),
            }
        }
    }
    failed
}

/// A command for logs and messages; library texts are left out.
fn shown(pod: &str, words: &[String]) -> String {
    let shown: Vec<&str> = words.iter().map(|w| w.lines().next().unwrap_or_default()).collect();
    format!("{pod}: {}", shown.join(" "))
}

fn commands(desired: &Desired, action: &Action) -> Vec<(String, Vec<String>)> {
    let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    match action {
        Action::Set { pod, name, value } => vec![(pod.clone(), words(&["CONFIG", "SET", name, value]))],
        Action::SetEpoch { pod, epoch } => {
            vec![(pod.clone(), words(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch.to_string()]))]
        }
        Action::Meet { pod, address, bus_port, .. } => {
            let (ip, port, bus) = (address.ip().to_string(), address.port().to_string(), bus_port.to_string());
            vec![(pod.clone(), words(&["CLUSTER", "MEET", &ip, &port, &bus]))]
        }
        Action::Raise { pod } => vec![(pod.clone(), words(&["CLUSTER", "BUMPEPOCH"]))],
        Action::Replicate { pod, primary } => {
            vec![(pod.clone(), words(&["CLUSTER", "REPLICATE", primary.as_str()]))]
        }
        Action::LoadLibrary { pod } => {
            let load =
                |library: &super::types::Library| (pod.clone(), words(&["FUNCTION", "LOAD", "REPLACE", &library.code]));
            desired.library.iter().map(load).collect()
        }
        Action::Tell { pod, wanted, room } => {
            let bound = |bytes: u64| (pod.clone(), words(&["CONFIG", "SET", "maxmemory", &bytes.to_string()]));
            let load = (pod.clone(), words(&["FUNCTION", "LOAD", "REPLACE", &wanted::code(*wanted)]));
            let before = room.map(|(meanwhile, _)| bound(meanwhile));
            let after = room.map(|(_, afterwards)| bound(afterwards));
            before.into_iter().chain([load]).chain(after).collect()
        }
        Action::Mark { pod } => {
            vec![(pod.clone(), words(&["FUNCTION", "LOAD", "REPLACE", &mark::code(&desired.cluster_uid)]))]
        }
        Action::AddSlots { pod, slots } => {
            let mut list = words(&["CLUSTER", "ADDSLOTSRANGE"]);
            list.extend(slots.arguments());
            vec![(pod.clone(), list)]
        }
        Action::Forget { pods, id } => {
            pods.iter().map(|pod| (pod.clone(), words(&["CLUSTER", "FORGET", id.as_str()]))).collect()
        }
    }
}
