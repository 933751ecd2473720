//! Delivered cursors, coalesced by user, device and conversation: the newest of each is written a few seconds after the first.
//!
//! Each device has its own time to be written, so that not everything is written at once.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, hash_map::Entry},
    sync::Arc,
    time::Instant,
};

/// Cursors kept for the next flush. At the bound new ones are refused; clients acknowledge again with their next message.
pub const MAX_CURSORS: usize = 200_000;
/// Cursors of one call to storage.
pub const MAX_PER_CALL: usize = 100;

/// Whose cursors.
pub type Device = (Arc<str>, Arc<str>);

/// The bound was reached.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// Cursors that wait to be written.
#[derive(Debug, Default)]
pub struct Acks {
    devices: HashMap<Device, HashMap<String, u64>>,
    /// When each of them is due, the earliest first.
    due: BinaryHeap<Reverse<(Instant, Device)>>,
    cursors: usize,
}

/// What is written in one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Whose.
    pub device: Device,
    /// Conversation and seq.
    pub cursors: Vec<(String, u64)>,
}

impl Acks {
    /// Adds cursors, to be written at `due` at the latest; a cursor only ever rises.
    pub fn add(
        &mut self,
        user: &str,
        device: &str,
        cursors: impl IntoIterator<Item = (String, u64)>,
        due: Instant,
    ) -> Result<(), Full> {
        let of_device = match self.devices.entry((user.into(), device.into())) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => {
                self.due.push(Reverse((due, free.key().clone())));
                free.insert(HashMap::new())
            }
        };
        for (conversation, seq) in cursors {
            match of_device.entry(conversation) {
                Entry::Occupied(mut known) => {
                    let seq = seq.max(*known.get());
                    known.insert(seq);
                }
                Entry::Vacant(_) if self.cursors >= MAX_CURSORS => return Err(Full),
                Entry::Vacant(free) => {
                    free.insert(seq);
                    self.cursors += 1;
                }
            }
        }
        Ok(())
    }

    /// Takes what is due at `now`.
    pub fn take(&mut self, now: Instant) -> Vec<Batch> {
        let mut batches = Vec::new();
        while self.due.peek().is_some_and(|Reverse((due, _))| *due <= now)
            && let Some(Reverse((_, device))) = self.due.pop()
        {
            let mut cursors: Vec<_> = self.devices.remove(&device).into_iter().flatten().collect();
            self.cursors -= cursors.len();
            while !cursors.is_empty() {
                let rest = cursors.split_off(cursors.len().min(MAX_PER_CALL));
                batches.push(Batch { device: device.clone(), cursors });
                cursors = rest;
            }
        }
        batches
    }

    /// Cursors that wait.
    pub fn len(&self) -> usize {
        self.cursors
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.cursors == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn at_the_bound_known_cursors_still_rise() {
        let (mut acks, now) = (Acks::default(), Instant::now());
        for n in 0..MAX_CURSORS / 100 {
            acks.add(&format!("u{n}"), "d", (0..100).map(|c| (format!("c{c}"), 1)), now).unwrap();
        }
        assert_eq!(acks.add("new", "d", [("c".to_owned(), 1)], now), Err(Full));
        assert_eq!(acks.add("u0", "d", [("c0".to_owned(), 2)], now), Ok(()));
        assert_eq!(acks.take(now).iter().map(|b| b.cursors.len()).sum::<usize>(), MAX_CURSORS);
        assert!(acks.is_empty() && acks.take(now).is_empty());
    }

    #[test]
    fn each_device_is_written_at_its_own_time() {
        let (mut acks, start) = (Acks::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let taken =
            |acks: &mut Acks, ms| acks.take(at(ms)).into_iter().map(|b| b.device.0.to_string()).collect::<Vec<_>>();
        acks.add("a", "d", [("c".to_owned(), 1)], at(100)).unwrap();
        acks.add("b", "d", [("c".to_owned(), 1)], at(50)).unwrap();
        acks.add("a", "d", [("c".to_owned(), 2)], at(200)).unwrap();
        assert_eq!(taken(&mut acks, 60), ["b"]);
        assert!(taken(&mut acks, 99).is_empty());
        assert_eq!(taken(&mut acks, 100), ["a"]);
        assert!(acks.is_empty());
    }

    proptest! {
        #[test]
        fn the_highest_of_each_cursor_is_written_once(said in proptest::collection::vec((0..3_u8, 0..2_u8, 0..150_u8, 0..50_u64), 0..600)) {
            let (mut acks, now) = (Acks::default(), Instant::now());
            let mut expected: HashMap<(String, String, String), u64> = HashMap::new();
            for (user, device, conversation, seq) in said {
                let (user, device, conversation) = (format!("u{user}"), format!("d{device}"), format!("c{conversation}"));
                acks.add(&user, &device, [(conversation.clone(), seq)], now).unwrap();
                let highest = expected.entry((user, device, conversation)).or_default();
                *highest = seq.max(*highest);
            }
            prop_assert_eq!(acks.len(), expected.len());
            for batch in acks.take(now) {
                prop_assert!(batch.cursors.len() <= MAX_PER_CALL);
                for (conversation, seq) in batch.cursors {
                    let key = (batch.device.0.to_string(), batch.device.1.to_string(), conversation);
                    prop_assert_eq!(expected.remove(&key), Some(seq));
                }
            }
            prop_assert!(expected.is_empty());
        }
    }
}
