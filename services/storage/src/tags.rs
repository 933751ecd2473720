//! The hash tag of each partition: the shortest string whose slot is the partition's first.

use std::sync::OnceLock;

/// Slots of the engine.
pub(crate) const SLOTS: u32 = 16_384;
const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// CRC-16/XMODEM, by which the engine maps a tag to a slot.
const fn crc16(bytes: &[u8]) -> u16 {
    let (mut crc, mut at) = (0_u16, 0);
    while at < bytes.len() {
        crc ^= (bytes[at] as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        at += 1;
    }
    crc
}

/// The slot of a hash tag.
pub(crate) const fn slot_of(tag: &[u8]) -> u16 {
    crc16(tag) & (SLOTS as u16 - 1)
}

/// The first slot of a partition, in which all of its keys live.
pub(crate) const fn first_slot(partition: u32, partitions: u32) -> u16 {
    (partition as u64 * SLOTS as u64 / partitions as u64) as u16
}

/// A tag for each slot, found by trying strings from the shortest on: every build of every version finds the same ones.
fn by_slot() -> &'static [String] {
    static TABLE: OnceLock<Vec<String>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = vec![String::new(); SLOTS as usize];
        let mut missing = table.len();
        let mut length = 1;
        while missing > 0 {
            let count = ALPHABET.len().pow(length);
            for number in 0..count {
                let tag = spell(number, length);
                let entry = &mut table[usize::from(slot_of(tag.as_bytes()))];
                if entry.is_empty() {
                    *entry = tag;
                    missing -= 1;
                }
            }
            length += 1;
        }
        table
    })
}

fn spell(mut number: usize, length: u32) -> String {
    let mut letters = vec![b'0'; length as usize];
    for letter in letters.iter_mut().rev() {
        *letter = ALPHABET[number % ALPHABET.len()];
        number /= ALPHABET.len();
    }
    letters.into_iter().map(char::from).collect()
}

/// The key of a partition's version hash, from which the functions derive all others.
pub(crate) fn version_key(partition: u32, partitions: u32) -> String {
    format!("{{{}}}v", by_slot()[usize::from(first_slot(partition, partitions))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_the_engines() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
    }

    #[test]
    fn every_slot_has_a_short_tag_of_its_own() {
        for (slot, tag) in by_slot().iter().enumerate() {
            assert_eq!(usize::from(slot_of(tag.as_bytes())), slot);
            assert!(tag.len() <= 4, "{tag}");
        }
    }

    #[test]
    fn a_partitions_tag_lies_in_its_first_slot_and_never_changes() {
        for partitions in [1, 16, 1024, 16_384] {
            for partition in [0, partitions / 2, partitions - 1] {
                let key = version_key(partition, partitions);
                let tag = key.trim_start_matches('{').trim_end_matches("}v");
                assert_eq!(slot_of(tag.as_bytes()), first_slot(partition, partitions));
            }
        }
        // Written to disk by every cluster: another answer would lose all data.
        assert_eq!(version_key(0, 1024), "{1bz}v");
        assert_eq!(version_key(1, 1024), "{04b}v");
        assert_eq!(version_key(1023, 1024), "{430}v");
    }
}
