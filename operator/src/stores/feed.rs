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
    runtime::{
        WatchStreamExt,
        reflector::store::Writer,
        watcher::{Event, watcher},
    },
};
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
    /// Whether it was ever whole.
    pub(super) ready: watch::Sender<bool>,
}

impl<K: Kind> Feed<K> {
    /// Watches until `end`. A watch that stays broken is begun anew with a list.
    pub(super) async fn run(mut self, end: CancellationToken) {
        let (mut failures, mut backoff) = (0_u32, Backoff::new(FIRST_PAUSE, LONGEST_PAUSE));
        while !end.is_cancelled() {
            self.broken(failures > 0);
            let config = K::selection().timeout(WATCH_S);
            let mut listing = true;
            let mut events = pin!(watcher(self.api.clone(), config).modify(K::trim));
            loop {
                // Nothing to tell is no fault of a watch, but of a list it is.
                let deadline = if listing { LIST_DEADLINE } else { Duration::MAX };
                let Some(next) = end.run_until_cancelled(tokio::time::timeout(deadline, events.next())).await else {
                    return;
                };
                match next {
                    Ok(Some(Ok(event))) => {
                        listing = matches!(event, Event::Init | Event::InitApply(_));
                        if !listing {
                            failures = 0;
                            backoff.reset();
                        }
                        self.take(event);
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

    fn take(&mut self, event: Event<K>) {
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
                self.ready.send_replace(true);
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
