//! Which node is the primary of which slots, as the nodes say of themselves.
//!
//! Every node that is known is asked; a node's word counts for itself alone, and where two claim a slot, the higher configuration epoch has
//! it. So a deposed primary that does not know it yet takes nothing away from its successor. Each answer counts as soon as it is there:
//! after a failover most of what is asked is a dead address, and the successor's word must not wait for that.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::{StreamExt, stream::FuturesUnordered};
use kith_kit::valkey::{Connection, Connector};
use parking_lot::Mutex;
use redis::{Value, cmd};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::tags::SLOTS;

/// Without a reason to look sooner.
const IDLE: Duration = Duration::from_secs(2);
/// Between two looks, however many ask.
const PAUSE: Duration = Duration::from_millis(50);
/// While every slot has an owner, others than owners are asked no sooner: slots that move are news of owners alone.
const OTHERS: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_millis(400);
/// Nodes asked; a bound against nonsense.
const MOST_NODES: usize = 256;

/// A primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Primary {
    /// The node's id.
    pub(super) id: String,
    /// `host:port`.
    pub(super) address: String,
}

/// The owners of all slots.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Topology {
    primaries: Vec<Primary>,
    /// For each slot the index of its primary plus one; 0: nobody.
    owners: Vec<u16>,
}

impl Topology {
    pub(super) fn owner(&self, slot: u16) -> Option<&Primary> {
        let index = *self.owners.get(usize::from(slot))?;
        self.primaries.get(usize::from(index).checked_sub(1)?)
    }

    /// Whether every slot has an owner.
    fn is_whole(&self) -> bool {
        !self.owners.is_empty() && self.owners.iter().all(|owner| *owner != 0)
    }

    /// Whether somebody else has what this node had, or the node itself at another address: nothing that was asked of it there counts.
    pub(super) fn deposes(&self, node: &Primary) -> bool {
        let listed = self.primaries.contains(node);
        !listed && (self.primaries.iter().any(|p| p.id == node.id) || self.is_whole())
    }
}

/// A primary, its configuration epoch and its slot ranges.
type Own = (Primary, u64, Vec<(u16, u16)>);

/// What one node says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Word {
    /// Of itself, if it is a primary.
    own: Option<Own>,
    others: Vec<String>,
}

/// Reads `CLUSTER NODES` as answered by the node at `asked`. Lines that cannot be read are left out.
///
/// A node is known by the address that it announces, whichever way led to it: the name of a Service leads to another node the next time,
/// and a primary that changed its address with the way would end every claim on it.
fn parse(text: &str, asked: &str) -> Word {
    let mut word = Word::default();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [id, address, flags, _, _, _, epoch, _, slots @ ..] = fields.as_slice() else { continue };
        let flags: Vec<&str> = flags.split(',').collect();
        // `ip:port@bus,hostname`, without the ip as long as a node has no address.
        let announced = address.split('@').next().filter(|a| !a.starts_with(':'));
        if flags.contains(&"myself") {
            if flags.contains(&"master") {
                let ranges = slots.iter().filter_map(|range| {
                    let (from, to) = range.split_once('-').unwrap_or((range, range));
                    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
                    (from <= to && u32::from(to) < SLOTS).then_some((from, to))
                });
                let primary = Primary { id: (*id).to_owned(), address: announced.unwrap_or(asked).to_owned() };
                word.own = Some((primary, epoch.parse().unwrap_or(0), ranges.collect()));
            }
        } else if let Some(address) = announced
            && !flags.iter().any(|f| matches!(*f, "noaddr" | "handshake"))
        {
            word.others.push(address.to_owned());
        }
    }
    word
}

fn merge<'a>(words: impl IntoIterator<Item = &'a Word>) -> Topology {
    let mut claims: Vec<_> =
        words.into_iter().filter_map(|w| w.own.as_ref()).filter(|(_, _, slots)| !slots.is_empty()).collect();
    claims.sort_by(|a, b| (a.1, &a.0.id).cmp(&(b.1, &b.0.id)));
    // The same node by several ways.
    claims.dedup_by(|a, b| a.0 == b.0 && a.2 == b.2);
    let mut topology = Topology { primaries: Vec::new(), owners: vec![0; SLOTS as usize] };
    for (primary, _, ranges) in claims {
        topology.primaries.push(primary.clone());
        let index = topology.primaries.len() as u16;
        for (from, to) in ranges {
            topology.owners[usize::from(*from)..=usize::from(*to)].fill(index);
        }
    }
    topology
}

/// The last word of each node that answers, by the way that led to it.
#[derive(Default)]
struct Words(BTreeMap<String, Word>);

impl Words {
    /// Takes an answer, or that there was none; says whether anything is different now.
    fn heard(&mut self, asked: String, word: Option<Word>) -> bool {
        let Some(word) = word else { return self.0.remove(&asked).is_some() };
        if self.0.get(&asked) == Some(&word) {
            return false;
        }
        if let Some((now, _, _)) = &word.own {
            // A node that came back elsewhere does not stand where it was.
            let moved =
                |w: &Word| w.own.as_ref().is_some_and(|(was, _, _)| was.id == now.id && was.address != now.address);
            self.0.retain(|_, known| !moved(known));
        }
        self.0.insert(asked, word);
        true
    }

    /// Whether the node at this address has slots.
    fn owns(&self, asked: &str) -> bool {
        self.0.get(asked).and_then(|word| word.own.as_ref()).is_some_and(|(_, _, slots)| !slots.is_empty())
    }

    /// All nodes that are named.
    fn named(&self) -> impl Iterator<Item = &String> {
        self.0.values().flat_map(|word| &word.others)
    }
}

/// Keeps the topology fresh.
pub(super) struct Watcher {
    connector: Connector,
    seeds: Vec<String>,
    connections: Mutex<HashMap<String, Connection>>,
    current: ArcSwap<Topology>,
    changed: watch::Sender<u64>,
    again: Notify,
}

impl Watcher {
    pub(super) fn new(connector: Connector, seeds: Vec<String>) -> Arc<Self> {
        Arc::new(Self {
            connector,
            seeds,
            connections: Mutex::default(),
            current: ArcSwap::default(),
            changed: watch::Sender::new(0),
            again: Notify::new(),
        })
    }

    pub(super) fn current(&self) -> Arc<Topology> {
        self.current.load_full()
    }

    /// Counts changes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Looks again soon, for a caller that met an answer which does not fit.
    pub(super) fn look_again(&self) {
        self.again.notify_one();
    }

    pub(super) async fn run(self: Arc<Self>, end: CancellationToken) {
        let (mut words, mut asked, mut answers) = (Words::default(), BTreeSet::new(), FuturesUnordered::new());
        let (mut begun, mut others) = (Instant::now(), None::<Instant>);
        let mut next = begun;
        loop {
            tokio::select! {
                () = end.cancelled() => return,
                Some((address, word)) = answers.next() => {
                    asked.remove(&address);
                    if words.heard(address, word) {
                        self.publish(&words);
                    }
                }
                () = self.again.notified() => next = next.min(begun + PAUSE),
                () = tokio::time::sleep_until(next) => {
                    begun = Instant::now();
                    next = begun + IDLE;
                    let all = others.is_none_or(|at| at.elapsed() >= OTHERS) || !self.current.load().is_whole();
                    if all {
                        others = Some(begun);
                    }
                    let named = self.seeds.iter().chain(words.named()).filter(|address| all || words.owns(address));
                    let nodes: BTreeSet<String> = named.take(MOST_NODES).cloned().collect();
                    // Who has not answered yet is not asked a second time.
                    for address in nodes.difference(&asked.clone()) {
                        asked.insert(address.clone());
                        answers.push(self.word(address.clone()));
                    }
                }
            }
        }
    }

    fn publish(&self, words: &Words) {
        if words.0.is_empty() {
            tracing::warn!("no node of the storage engine answers");
            return;
        }
        let fresh = merge(words.0.values());
        let known = self.current.load();
        if **known != fresh {
            if known.primaries != fresh.primaries {
                tracing::info!(primaries = ?fresh.primaries, "the storage engine's topology changed");
            }
            self.current.store(Arc::new(fresh));
            self.changed.send_modify(|n| *n += 1);
        }
    }

    async fn word(&self, address: String) -> (String, Option<Word>) {
        let word = self.ask(&address).await.map(|text| parse(&text, &address));
        (address, word)
    }

    async fn ask(&self, address: &str) -> Option<String> {
        let kept = self.connections.lock().get(address).cloned();
        let mut connection = match kept {
            Some(connection) if !connection.is_closed() => connection,
            _ => match tokio::time::timeout(ANSWER, self.connector.connect(address, ANSWER)).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a node of the storage engine cannot be reached");
                    return None;
                }
                Err(_) => return None,
            },
        };
        match connection.command(cmd("CLUSTER").arg("NODES")).await {
            Ok(Value::BulkString(text)) => {
                self.connections.lock().insert(address.to_owned(), connection);
                Some(String::from_utf8_lossy(&text).into_owned())
            }
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, "a node of the storage engine does not answer");
                self.connections.lock().remove(address);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(id: &str, epoch: u64, slots: &str) -> Word {
        parse(&format!("{id} {id}:1@2 myself,master - 0 0 {epoch} connected {slots}\n"), id)
    }

    #[test]
    fn the_higher_epoch_has_the_slot() {
        let topology = merge(&[own("new", 7, "0-16383"), own("old", 3, "0-16383")]);
        assert_eq!(topology.owner(0).unwrap().id, "new");
        assert_eq!(topology.owner(16_383).unwrap().address, "new:1");
    }

    #[test]
    fn a_node_has_one_address_whichever_way_led_to_it() {
        let text = "a 10.0.0.1:6379@16379,name myself,master - 0 0 1 connected 0-16383\n";
        let ways = ["10.0.0.1:6379", "shard.ns.svc:6379", "pod-0.shard.ns.svc:6379"];
        let topology = merge(&ways.map(|way| parse(text, way)));
        assert_eq!(topology.primaries, [Primary { id: "a".into(), address: "10.0.0.1:6379".into() }]);
        let alone = merge(&[parse("a :6379@16379 myself,master - 0 0 1 connected 0-5\n", "127.0.0.1:6379")]);
        assert_eq!(alone.owner(5).unwrap().address, "127.0.0.1:6379");
    }

    #[test]
    fn a_node_is_deposed_by_who_has_its_slots_or_by_itself_elsewhere() {
        let old = own("old", 3, "0-16383").own.unwrap().0;
        assert!(!merge(&[own("old", 3, "0-5")]).deposes(&old), "it stands");
        assert!(merge(&[own("new", 7, "0-16383")]).deposes(&old));
        assert!(!merge(&[own("new", 7, "0-5")]).deposes(&old), "who has the rest is not known yet");
        let elsewhere = Primary { address: "old:2".to_owned(), ..old.clone() };
        assert!(merge(&[own("old", 3, "0-5")]).deposes(&elsewhere));
        assert!(
            !merge(&[own("new", 7, "0-16383"), own("old", 3, "0-16383")]).deposes(&old),
            "it may have heard nothing yet"
        );
    }

    #[test]
    fn each_answer_counts_until_the_next_one() {
        let at = |address: &str| parse(&format!("a {address}@2 myself,master - 0 0 3 connected 0-5\n"), address);
        let mut words = Words::default();
        assert!(words.heard("x:1".into(), Some(at("x:1"))));
        assert!(!words.heard("x:1".into(), Some(at("x:1"))), "nothing new");
        assert!(words.heard("x:9".into(), Some(at("x:9"))));
        assert_eq!(words.0.keys().collect::<Vec<_>>(), ["x:9"], "a node that came back elsewhere stands there alone");
        assert!(words.owns("x:9") && !words.owns("x:1"));
        assert!(words.heard("x:9".into(), None) && !words.heard("x:9".into(), None));
    }

    #[test]
    fn a_nodes_word_about_others_gives_them_no_slots() {
        let text = "a 10.0.0.1:6379@16379 myself,slave b 0 0 1 connected\nb 10.0.0.2:6379@16379,host master - 0 0 1 connected 0-5 7\n";
        let word = parse(text, "10.0.0.1:6379");
        assert_eq!(word, Word { own: None, others: vec!["10.0.0.2:6379".to_owned()] });
        assert!(merge(&[word]).owner(0).is_none());
    }

    proptest::proptest! {
        #[test]
        fn an_arbitrary_table_of_nodes_makes_no_panic(words in "(([a-z0-9:,@.-]{0,12}|myself,master|[0-9]{1,6}-[0-9]{1,6}|\\[|\\PC)[ \n]){0,60}", noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            for text in [words, String::from_utf8_lossy(&noise).into_owned()] {
                let topology = merge(&[parse(&text, "127.0.0.1:1")]);
                for slot in [0, 16_383, u16::MAX] {
                    topology.owner(slot);
                }
            }
        }
    }

    #[test]
    fn nonsense_is_passed_over() {
        let word = parse("x\na b c\nid :0@0 myself,master - 0 0 1 connected 5 9-7 [1->-x] 99999 10-12\n", "n");
        assert_eq!(word.own.unwrap().2, [(5, 5), (10, 12)]);
    }
}
