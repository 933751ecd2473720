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
/// Of these, what one user may have while more than half of the room is free, and after that: nobody takes the room of the others.
const SHARE: usize = 5_000;
const SMALL_SHARE: usize = 200;
/// Cursors of one call to storage.
pub const MAX_PER_CALL: usize = 100;

/// Whose cursors.
pub type Device = (Arc<str>, Arc<str>);

/// The bound, or the user's share of it, was reached.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// Cursors that wait to be written.
#[derive(Debug, Default)]
pub struct Acks {
    devices: HashMap<Device, HashMap<String, u64>>,
    /// Cursors by user.
    users: HashMap<Arc<str>, usize>,
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
        let share = if self.cursors < MAX_CURSORS / 2 { SHARE } else { SMALL_SHARE };
        let device: Device = (user.into(), device.into());
        for (conversation, seq) in cursors {
            if let Some(known) = self.devices.get_mut(&device).and_then(|of_device| of_device.get_mut(&conversation)) {
                *known = seq.max(*known);
                continue;
            }
            let of_user = self.users.get(&device.0).copied().unwrap_or(0);
            if self.cursors >= MAX_CURSORS || of_user >= share {
                return Err(Full);
            }
            let of_device = match self.devices.entry(device.clone()) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(free) => {
                    self.due.push(Reverse((due, device.clone())));
                    free.insert(HashMap::new())
                }
            };
            of_device.insert(conversation, seq);
            *self.users.entry(device.0.clone()).or_default() += 1;
            self.cursors += 1;
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
            if let Entry::Occupied(mut of_user) = self.users.entry(device.0.clone()) {
                *of_user.get_mut() -= cursors.len();
                if *of_user.get() == 0 {
                    of_user.remove();
                }
            }
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
    fn one_user_takes_a_share_of_the_room_and_no_more() {
        let (mut acks, now) = (Acks::default(), Instant::now());
        let many = |from: usize, count: usize| (from..from + count).map(|c| (format!("c{c}"), 1));
        assert_eq!(acks.add("greedy", "d1", many(0, SHARE), now), Ok(()));
        for device in ["d1", "d2"] {
            assert_eq!(acks.add("greedy", device, many(SHARE, 1), now), Err(Full));
        }
        assert_eq!(acks.add("bob", "d1", many(0, 100), now), Ok(()), "the others have theirs");
        for n in 1..MAX_CURSORS / 2 / SHARE {
            acks.add(&format!("crowd{n}"), "d", many(0, SHARE), now).unwrap();
        }
        assert_eq!(acks.add("crowd-more", "d", many(0, SMALL_SHARE + 1), now), Err(Full));
        assert_eq!(acks.add("carol", "d1", many(0, SMALL_SHARE), now), Ok(()), "the rest is for many");
        acks.take(now);
        assert!(acks.users.is_empty() && acks.is_empty());
        assert_eq!(acks.add("greedy", "d2", many(SHARE, 1), now), Ok(()));
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
