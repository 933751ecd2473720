//! Which deliveries wait for which instance of `sessions`, in which order. No I/O.
//!
//! A lane is a queue named after an instance. While a user has deliveries in a lane, later ones of the same user follow there, even when
//! the user belongs to another instance by now: whoever works through the lane asks the owner of the moment, and nothing overtakes.
//! So an instance that is away delays its own users alone, and each user's order holds through every change of owners.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// A lane's name: the instance's address, empty while none is known.
pub type Lane = Arc<str>;

/// Something for some users, all in one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part<J> {
    /// What.
    pub job: J,
    /// For whom.
    pub users: Vec<Arc<str>>,
}

/// All lanes.
#[derive(Debug)]
pub struct Lanes<J> {
    queues: HashMap<Lane, VecDeque<Part<J>>>,
    users: HashMap<Arc<str>, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    lane: Lane,
    parts: usize,
}

impl<J> Default for Lanes<J> {
    fn default() -> Self {
        Self { queues: HashMap::new(), users: HashMap::new() }
    }
}

impl<J: Clone> Lanes<J> {
    /// Queues a job for users; `address` says where a user belongs now. Returns the lanes that got something, new ones with `true`.
    pub fn push(
        &mut self,
        job: &J,
        users: impl IntoIterator<Item = Arc<str>>,
        mut address: impl FnMut(&str) -> Lane,
    ) -> Vec<(Lane, bool)> {
        let mut parts: Vec<(Lane, Vec<Arc<str>>)> = Vec::with_capacity(1);
        for user in users {
            let waiting =
                self.users.entry(user.clone()).or_insert_with_key(|user| Waiting { lane: address(user), parts: 0 });
            waiting.parts += 1;
            match parts.iter_mut().find(|(lane, _)| *lane == waiting.lane) {
                Some((_, users)) => users.push(user),
                None => parts.push((waiting.lane.clone(), vec![user])),
            }
        }
        parts
            .into_iter()
            .map(|(lane, users)| {
                let is_new = !self.queues.contains_key(&lane);
                self.queues.entry(lane.clone()).or_default().push_back(Part { job: job.clone(), users });
                (lane, is_new)
            })
            .collect()
    }

    /// Takes the oldest parts of a lane while `fits` says so; one at least when there is one.
    pub fn take(&mut self, lane: &str, mut fits: impl FnMut(&Part<J>) -> bool) -> Vec<Part<J>> {
        let Some(queue) = self.queues.get_mut(lane) else { return Vec::new() };
        let mut taken = Vec::new();
        while let Some(part) = queue.front() {
            if !fits(part) && !taken.is_empty() {
                break;
            }
            taken.extend(queue.pop_front());
        }
        taken
    }

    /// A part has been worked off for these users: the next one may take another lane.
    pub fn finish<'a>(&mut self, users: impl IntoIterator<Item = &'a Arc<str>>) {
        for user in users {
            if let Some(waiting) = self.users.get_mut(user) {
                waiting.parts -= 1;
                if waiting.parts == 0 {
                    self.users.remove(user);
                }
            }
        }
    }

    /// Forgets a lane if nothing waits in it; says whether it is gone.
    pub fn retire(&mut self, lane: &str) -> bool {
        let idle = self.queues.get(lane).is_none_or(VecDeque::is_empty);
        if idle {
            self.queues.remove(lane);
        }
        idle
    }

    /// Users with something waiting.
    pub fn users_waiting(&self) -> usize {
        self.users.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lane(name: &str) -> Lane {
        name.into()
    }

    #[test]
    fn a_user_with_something_waiting_stays_in_the_lane_when_the_owner_changes() {
        let mut lanes: Lanes<u32> = Lanes::default();
        assert_eq!(lanes.push(&1, ["alice".into()], |_| lane("a")), [(lane("a"), true)]);
        assert_eq!(
            lanes.push(&2, ["alice".into(), "bob".into()], |_| lane("b")),
            [(lane("a"), false), (lane("b"), true)]
        );
        let taken = lanes.take("a", |_| true);
        assert_eq!(taken.iter().map(|p| p.job).collect::<Vec<_>>(), [1, 2]);
        for part in &taken {
            lanes.finish(&part.users);
        }
        assert_eq!(lanes.push(&3, ["alice".into()], |_| lane("b")), [(lane("b"), false)]);
        assert!(lanes.retire("a") && !lanes.retire("b"));
    }

    #[test]
    fn a_batch_is_bounded_but_never_empty() {
        let mut lanes: Lanes<u32> = Lanes::default();
        for job in 0..5 {
            lanes.push(&job, ["alice".into()], |_| lane("a"));
        }
        assert_eq!(lanes.take("a", |_| false).len(), 1);
        let mut room = 2;
        let taken = lanes.take("a", |_| {
            room -= 1;
            room >= 0
        });
        assert_eq!(taken.iter().map(|p| p.job).collect::<Vec<_>>(), [1, 2]);
        assert!(lanes.take("unknown", |_| true).is_empty());
    }

    proptest! {
        /// Whatever the owners do, each user gets each job once and in order, if every lane is worked off front to back.
        #[test]
        fn every_user_gets_every_job_in_order(
            steps in proptest::collection::vec((0..5_u8, proptest::collection::vec(0..4_u8, 1..4), 0..3_u8), 1..100),
        ) {
            let mut lanes: Lanes<usize> = Lanes::default();
            let mut expected: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
            let mut got: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
            let mut deliver = |lanes: &mut Lanes<usize>, lane: &str| {
                for part in lanes.take(lane, |_| true) {
                    lanes.finish(&part.users);
                    for user in part.users {
                        got.entry(user).or_default().push(part.job);
                    }
                }
            };
            for (job, (worked, users, owner)) in steps.into_iter().enumerate() {
                let mut users: Vec<Arc<str>> = users.iter().map(|u| format!("u{u}").into()).collect();
                users.sort();
                users.dedup();
                for user in &users {
                    expected.entry(user.clone()).or_default().push(job);
                }
                lanes.push(&job, users, |_| format!("{owner}").into());
                deliver(&mut lanes, &format!("{worked}"));
            }
            for owner in 0..3 {
                deliver(&mut lanes, &format!("{owner}"));
            }
            prop_assert_eq!(expected, got);
            prop_assert_eq!(lanes.users_waiting(), 0);
        }
    }
}
