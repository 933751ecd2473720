//! Hash slots and partitions: sets of slots as ranges, and which slots a partition is.

use std::{fmt, ops::RangeInclusive};

/// Slots of a cluster, a constant of the engine.
pub const SLOTS: u16 = 16_384;

/// Slots in one partition when all are cut into `partitions`, a power of two up to [`SLOTS`].
pub fn slots_per_partition(partitions: u32) -> u16 {
    SLOTS / u16::try_from(partitions.clamp(1, u32::from(SLOTS))).unwrap_or(SLOTS)
}

/// The slots of partition `partition`.
pub fn partition_slots(partition: u32, partitions: u32) -> RangeInclusive<u16> {
    let each = u32::from(slots_per_partition(partitions));
    let first = partition * each;
    (first as u16)..=((first + each - 1) as u16)
}

/// The partition that `slot` lies in.
pub fn partition_of(slot: u16, partitions: u32) -> u32 {
    u32::from(slot / slots_per_partition(partitions))
}

/// A set of slots: ranges in ascending order that neither touch nor overlap.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct SlotSet(Vec<(u16, u16)>);

impl SlotSet {
    /// No slot.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Every slot.
    pub fn all() -> Self {
        Self(vec![(0, SLOTS - 1)])
    }

    /// From ranges in any order; what overlaps is merged.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (u16, u16)>) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().filter(|(a, b)| a <= b && *b < SLOTS).collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match merged.last_mut() {
                Some(open) if first <= open.1 + 1 => open.1 = open.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// The slots of some partitions.
    pub fn of_partitions(list: impl IntoIterator<Item = u32>, partitions: u32) -> Self {
        Self::from_ranges(list.into_iter().map(|p| partition_slots(p, partitions).into_inner()))
    }

    /// The ranges, both ends included.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    /// Number of slots.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|(a, b)| u32::from(b - a) + 1).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it holds `slot`.
    pub fn contains(&self, slot: u16) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= slot);
        after > 0 && self.0[after - 1].1 >= slot
    }

    /// Whether it holds all of `other`.
    pub fn contains_all(&self, other: &Self) -> bool {
        other.difference(self).is_empty()
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::from_ranges(self.0.iter().chain(&other.0).copied())
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut out, mut i, mut j) = (Vec::new(), 0, 0);
        while let (Some(a), Some(b)) = (self.0.get(i), other.0.get(j)) {
            let (first, last) = (a.0.max(b.0), a.1.min(b.1));
            if first <= last {
                out.push((first, last));
            }
            if a.1 < b.1 { i += 1 } else { j += 1 }
        }
        Self(out)
    }

    /// What is in this and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.intersection(&other.complement())
    }

    /// What is in neither range of this.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut out = Vec::with_capacity(self.0.len() + 1);
        let mut next = 0;
        for (first, last) in &self.0 {
            if next < *first {
                out.push((next, first - 1));
            }
            next = last + 1;
        }
        if next < SLOTS {
            out.push((next, SLOTS - 1));
        }
        Self(out)
    }

    /// The slots one by one.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().flat_map(|(a, b)| *a..=*b)
    }

    /// The partitions that lie wholly in this set.
    pub fn whole_partitions(&self, partitions: u32) -> Vec<u32> {
        let each = u32::from(slots_per_partition(partitions));
        self.0.iter().flat_map(|(a, b)| u32::from(*a).div_ceil(each)..(u32::from(*b) + 1) / each).collect()
    }

    /// As arguments of `CLUSTER ADDSLOTSRANGE`: first and last of each range.
    pub fn arguments(&self) -> Vec<String> {
        self.0.iter().flat_map(|(a, b)| [a.to_string(), b.to_string()]).collect()
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (i, (first, last)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotSet({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_cut_the_slots_without_gap_or_overlap() {
        for partitions in [16, 1024, 16_384] {
            let all = SlotSet::of_partitions(0..partitions, partitions);
            assert_eq!(all, SlotSet::all());
            assert_eq!(all.whole_partitions(partitions), (0..partitions).collect::<Vec<_>>());
        }
        assert_eq!(partition_slots(1023, 1024), 16_368..=16_383);
        assert_eq!(partition_of(16_383, 1024), 1023);
    }

    #[test]
    fn set_operations_agree_with_a_list_of_slots() {
        let a = SlotSet::from_ranges([(10, 20), (0, 3), (21, 30), (16_383, 16_383)]);
        let b = SlotSet::from_ranges([(3, 12), (25, 16_383)]);
        assert_eq!(a.ranges(), [(0, 3), (10, 30), (16_383, 16_383)]);
        let both: Vec<u16> = a.iter().filter(|s| b.contains(*s)).collect();
        assert_eq!(a.intersection(&b).iter().collect::<Vec<_>>(), both);
        let only: Vec<u16> = a.iter().filter(|s| !b.contains(*s)).collect();
        assert_eq!(a.difference(&b).iter().collect::<Vec<_>>(), only);
        assert_eq!(a.union(&a.complement()), SlotSet::all());
        assert_eq!(a.union(&b).len(), SlotSet::all().difference(&a.union(&b)).complement().len());
        assert_eq!(a.to_string(), "0-3,10-30,16383");
    }
}
