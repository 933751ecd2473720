//! Rendezvous hashing: which of the ready instances owns a key. Every process that sees the same endpoints gives the same answer,
//! and one endpoint that comes or goes moves only its own share.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A node's weight for a key; the highest owns it.
fn weight(node: &str, key: u64) -> u64 {
    xxh3_64_with_seed(node.as_bytes(), key.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// The owner of `key` among `nodes`; none when there are no nodes. Ties go to the greater name.
pub fn owner<S: AsRef<str>>(nodes: &[S], key: u64) -> Option<&S> {
    nodes.iter().max_by(|a, b| (weight(a.as_ref(), key), a.as_ref()).cmp(&(weight(b.as_ref(), key), b.as_ref())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_node_that_leaves_moves_only_its_own_keys(n in 2_usize..8, gone in 0_usize..8, keys in proptest::collection::vec(any::<u64>(), 1..200)) {
            let nodes: Vec<String> = (0..n).map(|i| format!("10.0.0.{i}:7443")).collect();
            let gone = nodes[gone % n].clone();
            let rest: Vec<String> = nodes.iter().filter(|x| **x != gone).cloned().collect();
            for key in keys {
                let before = owner(&nodes, key).unwrap();
                if *before != gone {
                    prop_assert_eq!(Some(before), owner(&rest, key));
                }
            }
        }
    }

    #[test]
    fn shares_are_even_within_a_quarter() {
        let nodes: Vec<String> = (0..4).map(|i| format!("10.0.0.{i}:7443")).collect();
        let mut counts = [0_u32; 4];
        for key in 0..4096 {
            let o = owner(&nodes, key).unwrap();
            counts[nodes.iter().position(|x| x == o).unwrap()] += 1;
        }
        assert!(counts.iter().all(|c| (768..=1280).contains(c)), "{counts:?}");
    }
}
