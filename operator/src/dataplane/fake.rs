//! A cluster in memory for tests of the pure parts: it obeys actions as the engine would and is observed like it.

use std::net::SocketAddr;

use super::{
    mark,
    plan::Action,
    slots::SlotSet,
    types::{
        AttachedReplica, Desired, DesiredShard, Disk, History, KnownNode, Library, LibraryState, Member, NodeId,
        NodeState, NodeView, Observation, Presence, Role, Seen,
    },
};

/// One node of the fake.
#[derive(Debug, Clone)]
pub(crate) struct FakeNode {
    pub(crate) pod: String,
    pub(crate) shard: String,
    pub(crate) id: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) up: bool,
    /// What it is seen as when it is not up.
    pub(crate) down: Seen,
    pub(crate) epoch: u64,
    pub(crate) slots: SlotSet,
    pub(crate) replicates: Option<NodeId>,
    /// Ids that it knows, with the address it has for each.
    pub(crate) known: Vec<(NodeId, SocketAddr)>,
    pub(crate) keys: u64,
    pub(crate) offset: u64,
    pub(crate) history: String,
    pub(crate) library: bool,
    pub(crate) wanted: Option<u32>,
    pub(crate) owners: Vec<String>,
    pub(crate) wrong: Vec<(String, String)>,
    pub(crate) link_up: bool,
    pub(crate) last_io_s: u64,
}

/// The cluster.
#[derive(Debug, Clone)]
pub(crate) struct Fake {
    pub(crate) nodes: Vec<FakeNode>,
}

pub(crate) fn id(n: usize) -> NodeId {
    NodeId::parse(&format!("{n:040x}")).expect("forty digits")
}

/// A wish for `shards` shards of one primary and two replicas.
pub(crate) fn desired(shards: usize) -> Desired {
    let member = |shard: usize, i: usize| Member {
        pod: format!("demo-{shard}-valkey-{i}"),
        uid: format!("uid-{shard}-{i}"),
        node: Some(format!("node-{i}")),
        address: Some(SocketAddr::from(([10, 0, shard as u8, i as u8], 6379))),
        bus_port: 16_379,
        presence: Presence::Running,
        copy: true,
    };
    let shard = |n: usize| DesiredShard {
        name: format!("demo-{n}"),
        weight: 100,
        replicas: 2,
        draining: false,
        acknowledged_by: 1,
        min_replicas_to_write: 1,
        lowered: false,
        force_promote: None,
        hand_over: None,
        members: (0..3).map(|i| member(n, i)).collect(),
    };
    Desired {
        cluster: "demo".to_owned(),
        cluster_uid: "uid-demo".to_owned(),
        partitions: 1024,
        ack_replicas: 1,
        fsync: "always".to_owned(),
        formed: false,
        library: Some(Library { name: "kith1".to_owned(), code: "#!lua name=kith1\n".into() }),
        shards: (0..shards).map(shard).collect(),
    }
}

impl Fake {
    /// Empty nodes for every member.
    pub(crate) fn empty(desired: &Desired) -> Self {
        let nodes = desired
            .members()
            .enumerate()
            .map(|(n, (shard, member))| FakeNode {
                pod: member.pod.clone(),
                shard: shard.name.clone(),
                id: id(n + 1),
                address: member.address.expect("an address"),
                up: true,
                down: Seen::Down("no answer".to_owned()),
                epoch: 0,
                slots: SlotSet::empty(),
                replicates: None,
                known: Vec::new(),
                keys: 0,
                offset: 0,
                history: format!("own-{n}"),
                library: false,
                wanted: None,
                owners: Vec::new(),
                wrong: Vec::new(),
                link_up: true,
                last_io_s: 0,
            })
            .collect();
        Self { nodes }
    }

    /// A formed cluster in good health, with data.
    pub(crate) fn formed(desired: &Desired) -> Self {
        let mut fake = Self::empty(desired);
        fake.settle(desired, 50);
        for node in &mut fake.nodes {
            node.keys = 10;
            node.offset = 1000;
        }
        fake
    }

    /// Plans and obeys until nothing is left to do; the number of rounds.
    pub(crate) fn settle(&mut self, desired: &Desired, rounds: usize) -> usize {
        for round in 0..rounds {
            let actions = super::plan::plan(desired, &self.observe(desired)).actions;
            if actions.is_empty() {
                return round;
            }
            for action in &actions {
                self.obey(desired, action);
            }
        }
        panic!("not settled after {rounds} rounds: {:?}", super::plan::plan(desired, &self.observe(desired)));
    }

    pub(crate) fn node(&mut self, pod: &str) -> &mut FakeNode {
        self.nodes.iter_mut().find(|n| n.pod == pod).expect("a pod of the fake")
    }

    fn index(&self, pod: &str) -> usize {
        self.nodes.iter().position(|n| n.pod == pod).expect("a pod of the fake")
    }

    pub(crate) fn obey(&mut self, desired: &Desired, action: &Action) {
        match action {
            Action::Set { pod, name, .. } => self.node(pod).wrong.retain(|(n, _)| n != name),
            Action::SetEpoch { pod, epoch } => {
                assert!(self.node(pod).known.is_empty(), "the engine refuses an epoch for a node that knows others");
                self.node(pod).epoch = *epoch;
            }
            Action::Meet { pod, address, .. } => self.meet(pod, *address),
            Action::Raise { pod } => {
                let highest = self.nodes.iter().map(|n| n.epoch).max().unwrap_or(0);
                let node = self.node(pod);
                if node.epoch < highest {
                    node.epoch = highest + 1;
                }
            }
            Action::Replicate { pod, primary } => {
                let leads = self.nodes.iter().find(|n| n.id == *primary).map_or(0, |n| n.epoch);
                let node = self.node(pod);
                let stale = node.replicates.is_none() && !node.owners.is_empty() && node.epoch > leads;
                assert!(!stale, "the others would ignore all that it says");
                let (owners, library, wanted, keys, offset, history) = {
                    let p = self.nodes.iter().find(|n| n.id == *primary).expect("the primary is known");
                    (p.owners.clone(), p.library, p.wanted, p.keys, p.offset, p.history.clone())
                };
                let node = self.node(pod);
                assert!(node.slots.is_empty(), "the engine refuses a replica with slots");
                assert!(node.replicates.is_some() || node.keys == 0, "the engine refuses a replica with keys");
                node.replicates = Some(primary.clone());
                (node.owners, node.library, node.wanted, node.keys, node.offset, node.history) =
                    (owners, library, wanted, keys, offset, history);
            }
            Action::Tell { pod, wanted, .. } => self.spread(pod, |n| n.wanted = Some(*wanted)),
            Action::LoadLibrary { pod } => self.spread(pod, |n| n.library = true),
            Action::Mark { pod } => {
                let uid = mark::owner(&mark::name(&desired.cluster_uid)).expect("a mark");
                self.spread(pod, |n| n.owners = vec![uid.clone()]);
            }
            Action::AddSlots { pod, slots } => {
                assert!(self.nodes.iter().all(|n| n.slots.intersection(slots).is_empty()), "a slot given twice");
                let node = self.node(pod);
                assert!(node.library && !node.owners.is_empty(), "slots before the library");
                node.slots = node.slots.union(slots);
            }
            Action::Forget { pods, id } => {
                for pod in pods {
                    self.node(pod).known.retain(|(known, _)| known != id);
                }
            }
        }
    }

    /// Everybody who knows one of the two knows the other in the end.
    fn meet(&mut self, pod: &str, address: SocketAddr) {
        let a = self.index(pod);
        let b = self.nodes.iter().position(|n| n.address == address).expect("somebody lives there");
        let mut circle: Vec<usize> = vec![a, b];
        for i in [a, b] {
            for (known, _) in self.nodes[i].known.clone() {
                circle.extend(self.nodes.iter().position(|n| n.id == known));
            }
        }
        circle.sort_unstable();
        circle.dedup();
        for i in &circle {
            for j in &circle {
                if i != j {
                    let (other, address) = (self.nodes[*j].id.clone(), self.nodes[*j].address);
                    let known = &mut self.nodes[*i].known;
                    known.retain(|(id, _)| *id != other);
                    known.push((other, address));
                }
            }
        }
    }

    fn spread(&mut self, pod: &str, mut change: impl FnMut(&mut FakeNode)) {
        let primary = self.node(pod).id.clone();
        for node in self.nodes.iter_mut().filter(|n| n.id == primary || n.replicates.as_ref() == Some(&primary)) {
            change(node);
        }
    }

    /// What the engine does on `CLUSTER FAILOVER TAKEOVER`.
    pub(crate) fn takeover(&mut self, pod: &str) {
        let epoch = self.nodes.iter().map(|n| n.epoch).max().unwrap_or(0) + 1;
        let new = self.node(pod).id.clone();
        let old = self.node(pod).replicates.clone().expect("a replica");
        let mut slots = SlotSet::empty();
        for node in &mut self.nodes {
            if node.id == old {
                slots = std::mem::take(&mut node.slots);
            }
            if node.id == old || node.replicates.as_ref() == Some(&old) {
                node.replicates = Some(new.clone());
            }
        }
        let node = self.node(pod);
        (node.replicates, node.slots, node.epoch) = (None, slots, epoch);
    }

    /// What a pass sees.
    pub(crate) fn observe(&self, desired: &Desired) -> Observation {
        let nodes = desired.members().map(|(shard, member)| {
            let node = self.nodes.iter().find(|n| Some(n.address) == member.address);
            let seen = match node {
                None => Seen::Down("nobody is there".to_owned()),
                Some(node) if node.up => Seen::Up(Box::new(self.state(node))),
                Some(node) => node.down.clone(),
            };
            NodeView { shard: shard.name.clone(), pod: member.pod.clone(), seen }
        });
        Observation { nodes: nodes.collect() }
    }

    fn state(&self, node: &FakeNode) -> NodeState {
        let line = |n: &FakeNode, at: SocketAddr, myself: bool| KnownNode {
            id: n.id.clone(),
            address: Some(at),
            myself,
            primary: n.replicates.is_none(),
            replicates: n.replicates.clone(),
            failed: !n.up,
            suspected: false,
            handshake: false,
            epoch: n.epoch,
            connected: n.up && n.address == at,
            heard: n.up && n.address == at,
            slots: n.slots.clone(),
        };
        let mut view = vec![line(node, node.address, true)];
        for (id, at) in &node.known {
            if let Some(known) = self.nodes.iter().find(|n| n.id == *id) {
                view.push(line(known, *at, false));
            }
        }
        let mut shards: Vec<_> =
            view.iter().filter(|n| !n.slots.is_empty()).map(|n| (n.id.clone(), n.slots.clone())).collect();
        shards.sort_by(|a, b| a.0.cmp(&b.0));
        let attached = self.nodes.iter().filter(|n| n.up && n.replicates.as_ref() == Some(&node.id));
        let role = if let Some(primary) = &node.replicates {
            let up = node.link_up && self.nodes.iter().any(|n| n.up && n.id == *primary);
            Role::Replica {
                link_up: up,
                last_io_s: up.then_some(node.last_io_s),
                down_s: (!up).then_some(3),
                syncing: false,
            }
        } else {
            let replicas =
                attached.map(|n| AttachedReplica { address: Some(n.address), online: true, offset: n.offset });
            Role::Primary { replicas: replicas.collect() }
        };
        NodeState {
            id: node.id.clone(),
            role,
            offset: node.offset,
            history: History { id: node.history.clone(), previous: String::new() },
            loading: false,
            child: false,
            current_epoch: view.iter().map(|n| n.epoch).max().unwrap_or(0),
            keys: node.keys,
            memory: 1 << 20,
            max_memory: 0,
            disk: Disk::default(),
            view,
            shards,
            library: if node.library { LibraryState::Present } else { LibraryState::Missing },
            wanted: node.wanted,
            owners: node.owners.clone(),
            settings: node.wrong.clone(),
        }
    }
}
