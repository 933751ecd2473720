//! Members that are gone for good, with their volumes: their claim and pod are made anew, only while a promotable copy lives. Pure.
//!
//! Gone for good is what nobody can bring back: the volume is bound to a node whose Node object was deleted or that is tainted out of service,
//! or a person says so on the StorageShard (`kith.dev/replace-member`). Never a timeout: a node that is merely silent may return with
//! the only copy of an acknowledged message.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};

use crate::{
    apply::Live,
    dataplane::{
        readiness::Readiness,
        types::{Desired, Problem, Reason},
    },
};

/// The taint by which a person or a cloud says that a node will not come back as it was.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// A member to be made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Replacement {
    /// The shard.
    pub(super) shard: String,
    /// The pod.
    pub(super) pod: String,
    /// Its claim.
    pub(super) claim: String,
    /// For the log and the Event.
    pub(super) why: String,
    /// Whether a person asked: the annotation is then taken away.
    pub(super) asked: bool,
}

/// What the decision rests on.
pub(super) struct Scene<'a> {
    /// The wish.
    pub(super) desired: &'a Desired,
    /// How the shards are, as this pass saw them.
    pub(super) readiness: &'a Readiness,
    /// All claims of the ChatCluster.
    pub(super) claims: &'a Live<PersistentVolumeClaim>,
    /// The volumes that members which do not answer are bound to, by claim.
    pub(super) volumes: &'a BTreeMap<String, PersistentVolume>,
    /// All nodes of the Kubernetes cluster.
    pub(super) nodes: &'a Live<Node>,
    /// Members that a person declared gone, by shard.
    pub(super) asked: &'a BTreeMap<String, String>,
}

/// The claim of a pod.
pub(super) fn claim_of(pod: &str) -> String {
    format!("{}-{pod}", crate::render::valkey::DATA)
}

/// The members to be made anew, and those that must not be yet, in words.
pub(super) fn next(scene: &Scene<'_>) -> (Vec<Replacement>, Vec<Problem>) {
    let (mut steps, mut problems) = (Vec::new(), Vec::new());
    for shard in &scene.desired.shards {
        let Some(health) = scene.readiness.shards.iter().find(|h| h.shard == shard.name) else { continue };
        for member in &shard.members {
            let asked = scene.asked.get(&shard.name).is_some_and(|pod| *pod == member.pod);
            let answers = health.members.iter().any(|m| m.pod == member.pod && m.id.is_some());
            let why =
                if asked { Some("a person declared it gone for good".to_owned()) } else { lost(scene, &member.pod) };
            let Some(why) = why.filter(|_| asked || !answers) else { continue };
            let others = health.members.iter().filter(|m| m.pod != member.pod && m.in_step).count();
            let led = health.primary.as_deref().is_some_and(|p| p != member.pod);
            if !led || others == 0 {
                let message = format!(
                    "{} is gone for good ({why}) and is not made anew yet: no other copy of the shard is a primary that answers. Bring one back, or let a replica take over.",
                    member.pod
                );
                problems.push(Problem::new(Reason::MemberUnreachable, message).of(&shard.name));
                continue;
            }
            let claim = claim_of(&member.pod);
            steps.push(Replacement { shard: shard.name.clone(), pod: member.pod.clone(), claim, why, asked });
        }
    }
    (steps, problems)
}

/// Why the volume of a pod will never be seen again, if so.
fn lost(scene: &Scene<'_>, pod: &str) -> Option<String> {
    let claim = claim_of(pod);
    fate(scene.claims.get(&claim)?, scene.volumes.get(&claim), scene.nodes)
}

/// Why nobody will ever see what is behind this claim again, if so.
pub(super) fn fate(
    claim: &PersistentVolumeClaim,
    volume: Option<&PersistentVolume>,
    nodes: &Live<Node>,
) -> Option<String> {
    if claim.metadata.deletion_timestamp.is_some() {
        return Some("its claim is being deleted".to_owned());
    }
    let hosts = hosts(volume?);
    if hosts.is_empty() {
        return None;
    }
    let fate = |host: &String| match nodes.values().find(|n| name_of(n) == *host) {
        None => Some(format!("its volume is on node {host}, which does not exist any more")),
        Some(node) if is_out_of_service(node) => {
            Some(format!("its volume is on node {host}, which is tainted out of service"))
        }
        Some(_) => None,
    };
    let fates: Vec<Option<String>> = hosts.iter().map(fate).collect();
    // A volume that another node can reach is not lost.
    if fates.iter().all(Option::is_some) { fates.into_iter().next().flatten() } else { None }
}

fn name_of(node: &Node) -> String {
    let label = node.metadata.labels.as_ref().and_then(|l| l.get(HOSTNAME));
    label.or(node.metadata.name.as_ref()).cloned().unwrap_or_default()
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|t| t.key == OUT_OF_SERVICE)
}

/// The nodes that a volume is bound to; empty when it can be reached from everywhere or it cannot be told.
pub(super) fn hosts(volume: &PersistentVolume) -> Vec<String> {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()?.required.as_ref());
    let Some(selector) = affinity else { return Vec::new() };
    let mut hosts = Vec::new();
    for term in &selector.node_selector_terms {
        let by_host = term.match_expressions.iter().flatten().find(|e| e.key == HOSTNAME && e.operator == "In");
        match by_host.and_then(|e| e.values.clone()) {
            Some(values) => hosts.extend(values),
            // A term that names no host: the volume is not bound to one.
            None => return Vec::new(),
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dataplane::{
        fake::{Fake, desired},
        readiness::readiness,
    };

    struct Stage {
        desired: Desired,
        fake: Fake,
        claims: Live<PersistentVolumeClaim>,
        volumes: BTreeMap<String, PersistentVolume>,
        nodes: Live<Node>,
        asked: BTreeMap<String, String>,
    }

    fn node(name: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {HOSTNAME: name}}})).expect("a node")
    }

    impl Stage {
        fn new() -> Self {
            let desired = Desired { formed: true, ..desired(1) };
            let fake = Fake::formed(&Desired { formed: false, ..desired.clone() });
            let pods: Vec<String> = desired.members().map(|(_, m)| m.pod.clone()).collect();
            let claim = |pod: &String| {
                let claim = json!({"metadata": {"name": claim_of(pod)}});
                (claim_of(pod), serde_json::from_value(claim).expect("a claim"))
            };
            let volume = |(i, pod): (usize, &String)| {
                let terms = json!([{"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [format!("node-{i}")]}]}]);
                let volume = json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}});
                (claim_of(pod), serde_json::from_value(volume).expect("a volume"))
            };
            Self {
                claims: pods.iter().map(claim).collect(),
                volumes: pods.iter().enumerate().map(volume).collect(),
                nodes: (0..3).map(|i| (format!("node-{i}"), node(&format!("node-{i}")))).collect(),
                asked: BTreeMap::new(),
                desired,
                fake,
            }
        }

        fn next(&self) -> (Vec<Replacement>, Vec<Problem>) {
            let readiness = readiness(&self.desired, &self.fake.observe(&self.desired));
            next(&Scene {
                desired: &self.desired,
                readiness: &readiness,
                claims: &self.claims,
                volumes: &self.volumes,
                nodes: &self.nodes,
                asked: &self.asked,
            })
        }

        fn kill(&mut self, i: usize) {
            self.fake.nodes[i].up = false;
        }
    }

    #[test]
    fn a_silent_member_is_waited_for_until_its_node_is_deleted_or_out_of_service() {
        let mut stage = Stage::new();
        stage.kill(1);
        assert_eq!(stage.next(), (vec![], vec![]));
        let mut out = node("node-1");
        out.spec = serde_json::from_value(json!({"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]})).ok();
        stage.nodes.insert("node-1".to_owned(), out);
        assert_eq!(stage.next().0[0].claim, "data-demo-0-valkey-1");
        stage.nodes.remove("node-1");
        assert_eq!(stage.next().0[0].pod, "demo-0-valkey-1");
    }

    #[test]
    fn a_volume_that_other_nodes_reach_is_never_thrown_away() {
        let mut stage = Stage::new();
        stage.kill(1);
        stage.nodes.remove("node-1");
        stage.volumes.insert("data-demo-0-valkey-1".to_owned(), PersistentVolume::default());
        assert_eq!(stage.next(), (vec![], vec![]));
    }

    #[test]
    fn nothing_is_made_anew_without_another_living_copy() {
        let mut stage = Stage::new();
        for i in 0..2 {
            stage.kill(i);
            stage.nodes.remove(&format!("node-{i}"));
        }
        let (steps, problems) = stage.next();
        assert!(steps.is_empty() && problems.len() == 2, "{problems:?}");
        assert!(problems[0].message.contains("no other copy"), "{}", problems[0]);
    }

    #[test]
    fn a_person_may_declare_a_replica_gone_and_never_the_only_primary() {
        let mut stage = Stage::new();
        stage.asked.insert("demo-0".to_owned(), "demo-0-valkey-2".to_owned());
        let (steps, _) = stage.next();
        assert!(steps[0].asked && steps[0].pod == "demo-0-valkey-2");
        stage.asked.insert("demo-0".to_owned(), "demo-0-valkey-0".to_owned());
        let (steps, problems) = stage.next();
        assert!(steps.is_empty() && !problems.is_empty(), "the primary lives");
    }
}
