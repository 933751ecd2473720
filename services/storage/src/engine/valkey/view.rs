//! Which instances there are, as this one sees it: what discovery says, itself, and what it has learnt since.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use kith_kit::{discovery::Discovery, rendezvous};
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
    /// Instances that do not answer, whatever discovery says.
    silent: HashSet<String>,
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
        instances.push(self.me.clone());
        instances
            .retain(|i| !(learnt.gone.contains_key(i) || learnt.silent.contains(i) || learnt.leaving && *i == self.me));
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

    /// The other instances, as discovery knows them.
    pub(crate) fn peers(&self) -> Vec<String> {
        self.discovery.current().iter().filter(|i| **i != self.me).cloned().collect()
    }

    /// An instance has not answered for some seconds: it holds nothing any more. Says whether that is new.
    pub(crate) fn silent(&self, instance: &str) -> bool {
        let new = self.learnt.lock().silent.insert(instance.to_owned());
        if new {
            self.changed.send_modify(|n| *n += 1);
        }
        new
    }

    /// A silent instance answers again. Says whether it was silent.
    pub(crate) fn answers(&self, instance: &str) -> bool {
        let was = self.learnt.lock().silent.remove(instance);
        if was {
            self.changed.send_modify(|n| *n += 1);
        }
        was
    }

    /// What discovery has forgotten needs no remembering.
    pub(crate) fn only_silent(&self, among: &[String]) {
        self.learnt.lock().silent.retain(|i| among.contains(i));
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
    pub(crate) fn changes(&self) -> (watch::Receiver<kith_kit::discovery::Endpoints>, watch::Receiver<u64>) {
        (self.discovery.watch(), self.changed.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn what_a_silent_instance_held_is_its_peers_until_it_answers() {
        let end = CancellationToken::new();
        let discovery = Discovery::start("static:10.0.0.1:1,10.0.0.2:1", end.clone()).unwrap();
        discovery.watch().wait_for(|e| e.len() == 2).await.unwrap();
        let view = View::new(discovery, "10.0.0.1:1".to_owned());
        let other = "10.0.0.2:1";
        let half = view.mine(1024).len();
        assert!((1..1024).contains(&half));
        assert!(view.silent(other) && !view.silent(other), "told once");
        assert_eq!(view.mine(1024).len(), 1024);
        // A claim of its own that is only met now is old news.
        view.holds(other);
        assert_eq!(view.mine(1024).len(), 1024);
        assert!(view.answers(other) && !view.answers(other));
        assert_eq!(view.mine(1024).len(), half);
        end.cancel();
    }
}
