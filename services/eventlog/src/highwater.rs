//! How far each kith partition of a Kafka partition has been worked off, and its text in the metadata of a committed offset.
//!
//! Brokers take 4,096 bytes of metadata (`offset.metadata.max.bytes`). A mark takes at most 15 of them in base64, whatever its version, so
//! [`ALWAYS_FIT`] kith partitions always fit: P / K is at most that in all but unusual settings. Where there are more, the marks that moved
//! since a checkpoint are written, and the rest stands in the checkpoint (see [`super::marks`]).

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};

/// Below the brokers' default bound by what precedes the marks.
pub(super) const MAX_TEXT_BYTES: usize = 4_000;
/// So many marks fit, whatever they are: the distance to the mark before takes up to five bytes where there are few, and what more there
/// are the closer they stand: all distances together are below 2^32.
pub const ALWAYS_FIT: usize = 200;

/// The newest `ver` of each kith partition that needs no more work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HighWater(BTreeMap<u32, u64>);

impl FromIterator<(u32, u64)> for HighWater {
    fn from_iter<I: IntoIterator<Item = (u32, u64)>>(marks: I) -> Self {
        Self(marks.into_iter().collect())
    }
}

impl HighWater {
    /// The newest finished `ver` of a kith partition.
    pub fn get(&self, stream: u32) -> Option<u64> {
        self.0.get(&stream).copied()
    }

    /// Raises a kith partition's mark; never lowers it.
    pub fn raise(&mut self, stream: u32, ver: u64) {
        let mark = self.0.entry(stream).or_default();
        *mark = (*mark).max(ver);
    }

    /// Raises what `other` has further up.
    pub fn raise_to(&mut self, other: &Self) {
        for (stream, ver) in other.marks() {
            self.raise(stream, ver);
        }
    }

    /// All marks, by kith partition.
    pub fn marks(&self) -> impl Iterator<Item = (u32, u64)> {
        self.0.iter().map(|(stream, ver)| (*stream, *ver))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The marks that stand elsewhere than in `base`.
    #[must_use]
    pub fn moved_since(&self, base: &Self) -> Self {
        self.marks().filter(|(stream, ver)| base.get(*stream) != Some(*ver)).collect()
    }

    /// As text: in ascending order the distance to the kith partition before and the version, each in groups of seven bits.
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(self.0.len() * 4);
        let mut previous = 0;
        for (stream, ver) in self.marks() {
            put(&mut bytes, u64::from(stream - previous));
            put(&mut bytes, ver);
            previous = stream;
        }
        STANDARD_NO_PAD.encode(bytes)
    }

    /// Reads what [`HighWater::encode`] wrote; none for anything else.
    pub fn decode(text: &str) -> Option<Self> {
        let bytes = STANDARD_NO_PAD.decode(text).ok()?;
        let (mut rest, mut marks, mut stream) = (&bytes[..], BTreeMap::new(), 0_u32);
        while !rest.is_empty() {
            stream = stream.checked_add(u32::try_from(take(&mut rest)?).ok()?)?;
            marks.insert(stream, take(&mut rest)?);
        }
        Some(Self(marks))
    }

    /// Reads the text that versions before this one wrote: `1;` and `<distance>.<ver>,` in hexadecimal, a distance that repeats left out.
    pub fn decode_older(text: &str) -> Option<Self> {
        let mut marks = BTreeMap::new();
        let (mut stream, mut distance) = (0_u32, None);
        for entry in text.strip_prefix("1;")?.split_terminator(',') {
            let (step, ver) = entry.split_once('.')?;
            if !step.is_empty() {
                distance = Some(u32::from_str_radix(step, 16).ok()?);
            }
            stream = stream.checked_add(distance?)?;
            marks.insert(stream, u64::from_str_radix(ver, 16).ok()?);
        }
        Some(Self(marks))
    }
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, later) = rest.split_first()?;
        *rest = later;
        let group = u64::from(byte & 0x7f);
        if group << shift >> shift != group {
            return None;
        }
        number |= group << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_many_marks_as_promised_always_fit() {
        for step in [1, 7, 82, u32::MAX / ALWAYS_FIT as u32] {
            let high: HighWater = (0..ALWAYS_FIT as u32).map(|n| (n * step, u64::MAX)).collect();
            assert!(high.encode().len() <= MAX_TEXT_BYTES, "{step}");
        }
    }

    #[test]
    fn the_text_of_a_version_before_is_read() {
        let high = HighWater::decode_older("1;3.a,4.b,.ffffffffffffffff,").unwrap();
        assert_eq!(high, [(3, 10), (7, 11), (11, u64::MAX)].into_iter().collect());
        for foreign in ["", "1", "2;1.1,", "1;.5,", "1;zz.1,", "1;1.1,ffffffff.1,", "hello"] {
            assert_eq!(HighWater::decode_older(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn foreign_text_is_not_taken_for_a_high_water() {
        for foreign in ["=", "AQ", "AQ==", "/////////////w", "hello world"] {
            assert_eq!(HighWater::decode(foreign), None, "{foreign}");
        }
        assert_eq!(HighWater::decode(""), Some(HighWater::default()));
    }

    proptest! {
        #[test]
        fn a_high_water_survives_its_text(marks in proptest::collection::btree_map(any::<u32>(), any::<u64>(), 0..300)) {
            let high = HighWater(marks);
            prop_assert_eq!(HighWater::decode(&high.encode()), Some(high));
        }

        #[test]
        fn any_text_decodes_or_is_refused(text in ".{0,200}") {
            let _ = (HighWater::decode(&text), HighWater::decode_older(&text));
        }

        #[test]
        fn a_checkpoint_and_what_moved_since_make_the_whole(
            base in proptest::collection::btree_map(0_u32..64, 0_u64..9, 0..64),
            raised in proptest::collection::btree_map(0_u32..64, any::<u64>(), 0..64),
        ) {
            let base = HighWater(base);
            let mut now = base.clone();
            now.raise_to(&HighWater(raised));
            let mut again = base.clone();
            again.raise_to(&now.moved_since(&base));
            prop_assert_eq!(again, now);
        }
    }
}
