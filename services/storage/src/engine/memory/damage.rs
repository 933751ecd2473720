//! Damages what is stored.

use bytes::Bytes;

use super::{Data, MemoryEngine};

impl MemoryEngine {
    /// Changes one stored value of the keys and conversations that are named; `choose` gets the number of values there are.
    pub(crate) fn damage(
        &self,
        named: impl Fn(&str) -> bool,
        choose: impl FnOnce(usize) -> usize,
        change: impl FnOnce(&Bytes) -> Bytes,
    ) {
        let mut partitions = self.partitions.lock();
        let mut numbers: Vec<u32> = partitions.keys().copied().collect();
        numbers.sort_unstable();
        let mut places = Vec::new();
        for number in numbers {
            let Data { hashes, messages, .. } = &partitions[&number];
            let fields = hashes.iter().flat_map(|(key, f)| f.keys().map(|name| (key.clone(), name.clone())));
            places.extend(fields.map(|(key, name)| (number, key, name)));
            places
                .extend(messages.iter().flat_map(|(id, m)| m.keys().map(move |s| (number, id.clone(), s.to_string()))));
        }
        places.retain(|(_, key, _)| named(key));
        places.sort();
        let (number, key, name) = places.swap_remove(choose(places.len()));
        let Some(data) = partitions.get_mut(&number) else { return };
        let row = name.parse::<u64>().ok().and_then(|seq| data.messages.get_mut(&key)?.get_mut(&seq));
        let Some(value) = row.or_else(|| data.hashes.get_mut(&key)?.get_mut(&name)) else { return };
        *value = change(value);
    }
}
