//! Objects that await a pass: each stands once in it, so that any number of events fits and nobody who tells of one ever waits.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use futures::Stream;
use kube::{Resource, runtime::reflector::ObjectRef};
use tokio::sync::Notify;

/// The objects of one controller.
pub struct Touched<K: Resource<DynamicType = ()>> {
    waiting: Mutex<HashSet<ObjectRef<K>>>,
    more: Notify,
}

impl<K: Resource<DynamicType = ()>> Default for Touched<K> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), more: Notify::new() }
    }
}

impl<K: Resource<DynamicType = ()> + 'static> Touched<K> {
    /// This one awaits a pass.
    pub fn touch(&self, namespace: &str, name: &str) {
        let object = ObjectRef::new(name).within(namespace);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(object);
        self.more.notify_one();
    }

    /// All that wait, without an end. For one reader.
    pub fn stream(self: Arc<Self>) -> impl Stream<Item = ObjectRef<K>> + Send + 'static {
        futures::stream::unfold((self, Vec::new()), |(touched, mut taken)| async move {
            loop {
                if let Some(object) = taken.pop() {
                    return Some((object, (touched, taken)));
                }
                taken = touched.take();
                if taken.is_empty() {
                    touched.more.notified().await;
                }
            }
        })
    }

    fn take(&self) -> Vec<ObjectRef<K>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).drain().collect()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    #[tokio::test]
    async fn what_is_touched_often_is_told_once_and_nothing_is_lost() {
        let touched = Arc::new(Touched::<ConfigMap>::default());
        for _ in 0..1_000 {
            touched.touch("ns", "a");
        }
        touched.touch("ns", "b");
        let mut stream = std::pin::pin!(touched.clone().stream());
        let mut names = [stream.next().await, stream.next().await].map(|o| o.expect("an object").name);
        names.sort_unstable();
        assert_eq!(names, ["a", "b"]);
        // One that comes while the reader sleeps wakes it.
        let later = touched.clone();
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            later.touch("ns", "c");
        });
        assert_eq!(stream.next().await.expect("an object").name, "c");
    }
}
