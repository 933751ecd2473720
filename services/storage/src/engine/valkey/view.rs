//! Which instances there are, as this one sees it: what discovery says, itself, and what it has learnt since.

use std::{collections::HashMap, time::Duration};

use kith_kit::rendezvous;
use kith_rpc::discovery::Discovery;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

/// Until discovery shows what was learnt: an instance that claims or that says it leaves.
const MEMORY: Duration = Duration::from_secs(15);

/// The ready instances, and what is known before discovery knows it.
pub(crate) struct View {
    discovery: Discovery,
    me: String,
    learnt: Mutex<Learnt>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Learnt {
    /// Instances that hold partitions but are not ready yet.
    here: HashMap<String, Instant>,
    gone: HashMap<String, Instant>,
    leaving: bool,
}

impl View {
    pub(crate) fn new(discovery: Discovery, me: String) -> Self {
        Self { discovery, me, learnt: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// This instance's address.
    pub(crate) fn me(&self) -> &str {
        &self.me
    }

    /// All instances that may hold partitions now. This one is among them from its start: it becomes ready by claiming.
    pub(crate) fn instances(&self) -> Vec<String> {
        let mut learnt = self.learnt.lock();
        let now = Instant::now();
        learnt.here.retain(|_, at| now.duration_since(*at) < MEMORY);
        learnt.gone.retain(|_, at| now.duration_since(*at) < MEMORY);
        let mut instances: Vec<String> = self.discovery.current().iter().cloned().collect();
        instances.extend(learnt.here.keys().cloned());
        // A claim that is met only now says nothing about whether its maker lives.
        instances.retain(|i| !self.discovery.is_silent(i));
        instances.push(self.me.clone());
        instances.retain(|i| !(learnt.gone.contains_key(i) || learnt.leaving && *i == self.me));
        instances.sort_unstable();
        instances.dedup();
        instances
    }

    /// Who should hold a partition.
    pub(crate) fn owner(&self, partition: u32) -> Option<String> {
        rendezvous::owner(&self.instances(), u64::from(partition)).cloned()
    }

    /// The partitions that this instance should hold.
    pub(crate) fn mine(&self, partitions: u32) -> Vec<u32> {
        let instances = self.instances();
        (0..partitions)
            .filter(|p| rendezvous::owner(&instances, u64::from(*p)).is_some_and(|o| *o == self.me))
            .collect()
    }

    /// An instance has claimed a partition: it is there, whatever discovery says yet.
    pub(crate) fn holds(&self, instance: &str) {
        if instance != self.me {
            let mut learnt = self.learnt.lock();
            learnt.gone.remove(instance);
            learnt.here.insert(instance.to_owned(), Instant::now());
        }
    }

    /// An instance has said that it ends.
    pub(crate) fn leaves(&self, instance: &str) {
        let mut learnt = self.learnt.lock();
        learnt.here.remove(instance);
        learnt.gone.insert(instance.to_owned(), Instant::now());
        drop(learnt);
        self.changed.send_modify(|n| *n += 1);
    }

    /// This instance ends: nothing is its own any more.
    pub(crate) fn leave(&self) {
        self.learnt.lock().leaving = true;
        self.changed.send_modify(|n| *n += 1);
    }

    /// Resolves at the next change, from discovery or from peers.
    pub(crate) fn changes(&self) -> (watch::Receiver<kith_rpc::discovery::Endpoints>, watch::Receiver<u64>) {
        (self.discovery.watch(), self.changed.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_silent_instance_held_is_its_peers() {
        let (me, other) = ("10.0.0.1:1", "10.0.0.2:1");
        let mine = |view: &View| view.mine(1024).len();
        let both = View::new(Discovery::fixed(&[me, other], &[]), me.to_owned());
        assert!((1..1024).contains(&mine(&both)));
        let alone = View::new(Discovery::fixed(&[me, other], &[other]), me.to_owned());
        assert_eq!(mine(&alone), 1024);
        alone.holds(other);
        assert_eq!(mine(&alone), 1024, "a claim of its own that is only met now is old news");
        // This one holds what is its own whatever it hears of itself.
        let cut_off = View::new(Discovery::fixed(&[me, other], &[me]), me.to_owned());
        assert_eq!(mine(&cut_off), mine(&both));
    }
}
