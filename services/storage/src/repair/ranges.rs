//! A set of versions as ranges: an unbroken log is one of them, however long it is.

use std::collections::BTreeMap;

/// Versions; first to last of each unbroken run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a version; says whether it is new.
    pub(crate) fn insert(&mut self, ver: u64) -> bool {
        let before = self.0.range(..=ver).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| ver <= last) {
            return false;
        }
        let first = before.filter(|(_, last)| last.checked_add(1) == Some(ver)).map_or(ver, |(first, _)| first);
        let last = ver.checked_add(1).and_then(|next| self.0.remove(&next)).unwrap_or(ver);
        self.0.insert(first, last);
        true
    }

    /// Unbroken runs.
    pub(crate) fn runs(&self) -> usize {
        self.0.len()
    }

    /// The first version from `ver` on.
    pub(crate) fn from(&self, ver: u64) -> Option<u64> {
        let holds = self.0.range(..=ver).next_back().is_some_and(|(_, last)| ver <= *last);
        if holds { Some(ver) } else { self.0.range(ver..).next().map(|(first, _)| *first) }
    }

    /// The runs that are not in the set, behind `after` and up to `last`.
    pub(crate) fn missing(&self, after: u64, last: u64) -> Vec<(u64, u64)> {
        let mut missing = Vec::new();
        let mut next = after.saturating_add(1);
        for (first, end) in &self.0 {
            if *first > last {
                break;
            }
            if *first > next {
                missing.push((next, first - 1));
            }
            next = next.max(end.saturating_add(1));
        }
        if next <= last {
            missing.push((next, last));
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_say_what_a_plain_set_says(vers in proptest::collection::vec(1..40_u64, 0..60), after in 0..40_u64, last in 0..50_u64, at in 0..50_u64) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for ver in vers {
                prop_assert_eq!(ranges.insert(ver), set.insert(ver));
            }
            prop_assert_eq!(ranges.from(at), set.range(at..).next().copied());
            let missing: Vec<u64> = ranges.missing(after, last).into_iter().flat_map(|(first, last)| first..=last).collect();
            let expected: Vec<u64> = (after + 1..=last).filter(|v| !set.contains(v)).collect();
            prop_assert_eq!(missing, expected);
        }
    }

    #[test]
    fn an_unbroken_log_is_one_run() {
        let mut ranges = Ranges::default();
        assert!((1..=10_000).rev().all(|ver| ranges.insert(ver)));
        assert_eq!(ranges.runs(), 1);
        assert!(ranges.insert(u64::MAX) && !ranges.insert(u64::MAX));
    }
}
