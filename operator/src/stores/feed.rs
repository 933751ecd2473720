//! One watch: what it tells goes into a memory, and from there to whoever waits for changes.

use std::{
    pin::pin,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use futures::StreamExt;
use kith_kit::backoff::Backoff;
use kube::{
    Api,
    api::{ListParams, Request},
    runtime::{
        WatchStreamExt,
        reflector::store::Writer,
        watcher::{Event, watcher},
    },
};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{kinds::Kind, memory::Memory};

/// The API server ends a watch after so many seconds, and the next one goes on where it ended. A connection that died silently is noticed
/// within this time, too.
const WATCH_S: u32 = 60;
/// A list must be whole within this time.
const LIST_DEADLINE: Duration = Duration::from_secs(60);
/// Pauses after failures.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What one watch fills.
pub(super) struct Feed<K: Kind> {
    pub(super) api: Api<K>,
    pub(super) memory: Arc<RwLock<Memory<K>>>,
    /// The same for a controller, which finds its objects there.
    pub(super) mirror: Option<Writer<K>>,
    /// Told of every change, after it can be read.
    pub(super) touch: Box<dyn Fn(&K) + Send + Sync>,
    /// Whether this replica leads. What is told before is read only once it is known to be no older.
    pub(super) leading: watch::Receiver<bool>,
    /// Whether it was ever whole, and no older than the lease.
    pub(super) ready: watch::Sender<bool>,
}

/// A list of metadata.
#[derive(Deserialize)]
struct Versions {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Version,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    #[serde(default)]
    namespace: String,
    name: String,
    resource_version: String,
}

/// Waits until this replica leads; false if it never will.
pub(super) async fn leads(leading: &mut watch::Receiver<bool>) -> bool {
    leading.wait_for(|leads| *leads).await.is_ok()
}

impl<K: Kind> Feed<K> {
    /// Watches until `end`. A watch that stays broken is begun anew with a list.
    pub(super) async fn run(mut self, end: CancellationToken) {
        let (mut failures, mut backoff) = (0_u32, Backoff::new(FIRST_PAUSE, LONGEST_PAUSE));
        while !end.is_cancelled() {
            self.broken(failures > 0);
            let mut leading = self.leading.clone();
            let mut proven = !K::IS_PROVEN || *leading.borrow();
            self.memory.write().unwrap_or_else(PoisonError::into_inner).prove(proven);
            let config = K::selection().timeout(WATCH_S);
            let mut listing = true;
            let mut events = pin!(watcher(self.api.clone(), config).modify(K::trim));
            loop {
                // Nothing to tell is no fault of a watch, but of a list it is.
                let deadline = if listing { LIST_DEADLINE } else { Duration::MAX };
                let next = tokio::select! {
                    () = end.cancelled() => return,
                    leads = leads(&mut leading), if !proven => {
                        // Nobody will lead any more.
                        if !leads {
                            return;
                        }
                        proven = !listing && self.is_exact(&end).await;
                        if !proven {
                            break;
                        }
                        self.memory.write().unwrap_or_else(PoisonError::into_inner).prove(true);
                        self.ready.send_replace(true);
                        continue;
                    }
                    next = tokio::time::timeout(deadline, events.next()) => next,
                };
                match next {
                    Ok(Some(Ok(event))) => {
                        listing = matches!(event, Event::Init | Event::InitApply(_));
                        if !listing {
                            failures = 0;
                            backoff.reset();
                        }
                        self.take(event, proven);
                    }
                    Ok(Some(Err(error))) => {
                        failures = failures.saturating_add(1);
                        if self.failed(failures, &error.to_string(), backoff.after_failure(), &end).await {
                            break;
                        }
                    }
                    Ok(None) => break,
                    Err(_) => {
                        failures = failures.saturating_add(1);
                        self.memory.write().unwrap_or_else(PoisonError::into_inner).distrust();
                        self.broken(true);
                        let why = "the list did not come to its end in time";
                        self.failed(failures, why, backoff.after_failure(), &end).await;
                        break;
                    }
                }
            }
        }
    }

    /// Whether what was told is what stands now, by a list of versions alone. A watch may have died silently.
    async fn is_exact(&self, end: &CancellationToken) -> bool {
        let selected = ListParams { label_selector: K::selection().label_selector, ..ListParams::default() };
        let asked = tokio::time::timeout(LIST_DEADLINE, self.versions(&selected));
        let found = match end.run_until_cancelled(asked).await {
            Some(Ok(Ok(found))) => found,
            Some(Ok(Err(error))) => {
                tracing::warn!(kind = %K::kind(&()), %error, "whether a watch has told everything is not known; it is begun anew");
                return false;
            }
            Some(Err(_)) | None => return false,
        };
        self.memory.read().unwrap_or_else(PoisonError::into_inner).is_exactly(&found)
    }

    /// Namespaces, names and versions of what stands. Of the metadata nothing else is read: most of it is who wrote which field.
    async fn versions(&self, selected: &ListParams) -> kube::Result<Vec<((String, String), Option<u64>)>> {
        let request = Request::new(self.api.resource_url()).list_metadata(selected);
        let request = request.map_err(kube::Error::BuildRequest)?;
        let list: Versions = self.api.clone().into_client().request(request).await?;
        let place = |of: Version| ((of.namespace, of.name), of.resource_version.parse().ok());
        Ok(list.items.into_iter().map(|item| place(item.metadata)).collect())
    }

    fn take(&mut self, event: Event<K>, proven: bool) {
        if let Some(mirror) = self.mirror.as_mut() {
            mirror.apply_watcher_event(&event);
        }
        let now = Instant::now();
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => memory.begin(),
            Event::InitApply(object) => memory.add(&object),
            Event::InitDone => {
                memory.done(now);
                let places = memory.places();
                drop(memory);
                self.broken(false);
                if proven {
                    self.ready.send_replace(true);
                }
                self.touch_all(&places);
            }
            Event::Apply(object) => {
                memory.changed(&object, now);
                drop(memory);
                (self.touch)(&object);
            }
            Event::Delete(object) => {
                memory.gone(&object, now);
                drop(memory);
                (self.touch)(&object);
            }
        }
    }

    /// One at a time: all at once would take the memory that packing saves.
    fn touch_all(&self, places: &[(String, String)]) {
        for (namespace, name) in places {
            let object = self.memory.read().unwrap_or_else(PoisonError::into_inner).get(namespace, name);
            match object {
                Ok(Some(object)) => (self.touch)(&object),
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "nobody is told of it"),
            }
        }
    }

    /// Says so, waits, and answers whether the watch is to be begun anew.
    async fn failed(&self, failures: u32, why: &str, pause: Duration, end: &CancellationToken) -> bool {
        let kind = K::kind(&());
        metrics::counter!("kith_operator_watch_errors_total", "kind" => kind.to_string()).increment(1);
        if failures.is_power_of_two() {
            tracing::warn!(%kind, %why, failures, "a watch broke; it is taken up again");
        }
        let anew = self.memory.write().unwrap_or_else(PoisonError::into_inner).failed(Instant::now());
        if anew {
            self.broken(true);
        }
        end.run_until_cancelled(tokio::time::sleep(pause)).await;
        anew
    }

    fn broken(&self, is: bool) {
        let kind = K::kind(&()).to_string();
        let namespace = self.api.namespace().unwrap_or_default().to_owned();
        metrics::gauge!("kith_operator_watch_broken", "kind" => kind, "namespace" => namespace)
            .set(f64::from(u8::from(is)));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Mutex,
            atomic::{AtomicU64, Ordering},
        },
    };

    use axum::http::{Request as HttpRequest, Response};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Client, client::Body};
    use serde_json::json;

    use super::*;

    /// An API server with one ConfigMap, whose watches tell nothing. It keeps what it was asked.
    fn server(version: Arc<AtomicU64>, asked: Arc<Mutex<Vec<&'static str>>>) -> Client {
        let service = tower::service_fn(move |request: HttpRequest<Body>| {
            let (version, asked) = (version.clone(), asked.clone());
            async move {
                let kind = request.headers().get("accept").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
                let names_only = kind.contains("PartialObject");
                let watches = request.uri().query().unwrap_or_default().contains("watch=");
                asked.lock().unwrap().push(match (watches, names_only) {
                    (true, _) => "watch",
                    (_, true) => "versions",
                    _ => "list",
                });
                if watches {
                    std::future::pending::<()>().await;
                }
                let version = version.load(Ordering::Relaxed).to_string();
                let metadata = json!({"name": "a", "namespace": "ns", "uid": "u", "resourceVersion": version});
                let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version}, "items": [{"metadata": metadata}]});
                Ok::<_, Infallible>(Response::new(Body::from(list.to_string().into_bytes())))
            }
        });
        Client::new(service, "ns")
    }

    /// A replica waits with a watch that tells nothing, while `changes` are made; then it leads. What it asked, and the version that it reads.
    async fn turn(changes: u64) -> (Vec<&'static str>, Option<String>) {
        let (version, asked) = (Arc::new(AtomicU64::new(7)), Arc::default());
        let memory = Arc::new(RwLock::new(Memory::<ConfigMap>::new(ConfigMap::cluster)));
        let ((leads, leading), (ready, mut is_ready)) = (watch::channel(false), watch::channel(false));
        let api = Api::namespaced(server(version.clone(), Arc::clone(&asked)), "ns");
        let feed = Feed { api, memory: memory.clone(), mirror: None, touch: Box::new(|_| {}), leading, ready };
        let end = CancellationToken::new();
        let running = tokio::spawn(feed.run(end.clone()));
        while asked.lock().unwrap().last() != Some(&"watch") {
            tokio::task::yield_now().await;
        }
        assert!(!memory.read().unwrap().is_usable() && !*is_ready.borrow(), "it does not lead yet");
        version.fetch_add(changes, Ordering::Relaxed);
        leads.send_replace(true);
        tokio::time::timeout(LIST_DEADLINE, is_ready.wait_for(|ready| *ready)).await.expect("in time").unwrap();
        let read = memory.read().unwrap().get("ns", "a").ok().flatten().and_then(|map| map.metadata.resource_version);
        assert!(memory.read().unwrap().is_usable());
        end.cancel();
        running.await.unwrap();
        let asked = asked.lock().unwrap().clone();
        (asked, read)
    }

    #[tokio::test]
    async fn what_was_told_before_the_lease_counts_once_a_list_of_versions_agrees() {
        let (asked, read) = turn(0).await;
        assert_eq!((asked.as_slice(), read.as_deref()), (["list", "watch", "versions"].as_slice(), Some("7")));
    }

    #[tokio::test]
    async fn a_watch_that_died_silently_before_the_lease_is_begun_anew() {
        let (asked, read) = turn(1).await;
        assert_eq!((&asked[..4], read.as_deref()), (["list", "watch", "versions", "list"].as_slice(), Some("8")));
    }
}
