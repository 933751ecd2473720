//! An object as a memory keeps it: its JSON, and the few facts of it that are asked for without reading it. Pure.
//!
//! The typed form of an object takes several times the memory of its JSON, and most objects are read seldom.

use std::marker::PhantomData;

use kube::ResourceExt;
use thiserror::Error;

use crate::apply::Object;

/// An object that was told and cannot be read back. Says nothing of what stands in it, which may be secret.
#[derive(Debug, Error)]
#[error("{kind} {namespace}/{name} was told and cannot be read back: byte {at} of {length} is not as it was written")]
pub(in crate::stores) struct Unreadable {
    kind: String,
    namespace: String,
    name: String,
    at: usize,
    length: usize,
}

/// A label that objects are chosen by.
pub(in crate::stores) struct Label<'a> {
    name: &'a str,
    value: &'a str,
    /// What stands in the JSON of every object that has it.
    text: String,
}

impl<'a> Label<'a> {
    /// The label of this name and value.
    pub(in crate::stores) fn new(name: &'a str, value: &'a str) -> Self {
        let json = |text: &str| serde_json::Value::from(text).to_string();
        Self { name, value, text: format!("{}:{}", json(name), json(value)) }
    }

    /// Whether an object has it.
    pub(in crate::stores) fn is_of<K: ResourceExt>(&self, object: &K) -> bool {
        object.labels().get(self.name).is_some_and(|value| value == self.value)
    }
}

/// An object that was told.
pub(super) struct Packed<K> {
    /// Compact; empty if it could not be written.
    text: Box<str>,
    /// Its version, if that is a number.
    pub(super) version: Option<u64>,
    /// Its uid.
    pub(super) uid: Option<Box<str>>,
    /// Whether it is being deleted.
    pub(super) dying: bool,
    /// The ChatCluster that it belongs to.
    pub(super) cluster: Option<Box<str>>,
    /// The version that was found to be what is wanted, with the hashes of the last two wishes: two controllers look at a StatefulSet of a
    /// shard.
    pub(super) current: Option<(u64, [u64; 2])>,
    kind: PhantomData<fn() -> K>,
}

impl<K: Object> Packed<K> {
    /// Packs an object of a ChatCluster.
    pub(super) fn new(object: &K, cluster: Option<&str>) -> Self {
        Self {
            // An object that cannot be written cannot be read either, and that is where it is told.
            text: serde_json::to_string(object).unwrap_or_default().into_boxed_str(),
            version: super::version(object),
            uid: object.meta().uid.as_deref().map(Box::from),
            dying: object.meta().deletion_timestamp.is_some(),
            cluster: cluster.map(Box::from),
            current: None,
            kind: PhantomData,
        }
    }

    /// The object.
    pub(super) fn read(&self, namespace: &str, name: &str) -> Result<K, Unreadable> {
        serde_json::from_str(&self.text).map_err(|error| Unreadable {
            kind: K::kind(&()).into_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            at: error.column(),
            length: self.text.len(),
        })
    }

    /// Whether it may have a label: those that have it are among those that may. What cannot be read may have any.
    pub(super) fn may_have(&self, label: &Label<'_>) -> bool {
        self.text.is_empty() || self.text.contains(&label.text)
    }

    /// As if its text had been damaged.
    #[cfg(test)]
    pub(super) fn damage(&mut self, text: &str) {
        self.text = text.into();
    }
}
