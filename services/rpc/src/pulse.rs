//! Whether the instances that discovery lists live, by asking them. A node that dies takes its instances along at once and out of
//! discovery after most of a minute; who does not answer for some seconds is taken out here. One that lives all the same, cut off or
//! stopped, is fenced in storage and reported to anew in `sessions`: nothing is written twice, nothing is lost.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Dialer, is_alive},
    discovery::{Discovery, Endpoints},
};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// How long an instance may take to say that it lives.
const ANSWER: Duration = Duration::from_millis(800);
/// So many silent looks in a row: two to four seconds.
const MISSES: u32 = 3;

/// The same instances without those that do not answer. When none does, all are there: then the fault is rather on this side.
pub(crate) fn living(listed: &Discovery, component: &'static str, dialer: Dialer, end: CancellationToken) -> Discovery {
    let (endpoints, living) = watch::channel(listed.current());
    let (silent, known) = watch::channel(Arc::default());
    tokio::spawn(run(listed.watch(), component, dialer, Living { endpoints, silent }, end));
    listed.with(living, known)
}

/// Where the outcome goes.
struct Living {
    endpoints: watch::Sender<Endpoints>,
    silent: watch::Sender<Arc<HashSet<String>>>,
}

async fn run(
    mut listed: watch::Receiver<Endpoints>,
    component: &'static str,
    dialer: Dialer,
    living: Living,
    end: CancellationToken,
) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut misses = Misses::default();
    loop {
        tokio::select! {
            biased;
            () = end.cancelled() => return,
            // What is new is there at once, and what is gone is gone at once. An error means that discovery ends with the process.
            changed = listed.changed() => if changed.is_err() { return },
            _ = tick.tick() => {
                let asked = listed.borrow().clone();
                let looks = asked.iter().map(|address| is_alive(dialer.channel(address), ANSWER));
                let looks = tokio::select! {
                    () = end.cancelled() => return,
                    looks = join_all(looks) => looks,
                };
                for (address, alive) in asked.iter().zip(looks) {
                    match misses.note(address, alive) {
                        Some(Turn::Silent) => {
                            tracing::warn!(component, %address, "an instance is silent");
                            metrics::counter!("kith_client_silent_instances_total", "component" => component).increment(1);
                        }
                        Some(Turn::Back) => tracing::info!(component, %address, "an instance answers again"),
                        None => {}
                    }
                }
            }
        }
        living.publish(&listed.borrow_and_update().clone(), &mut misses);
    }
}

impl Living {
    /// Who is silent is known before the endpoints change.
    fn publish(&self, listed: &Endpoints, misses: &mut Misses) {
        misses.forget_others(listed);
        let silent = misses.silent();
        let endpoints = without(listed, &silent);
        self.silent.send_if_modified(|known| {
            let changed = **known != silent;
            if changed {
                *known = Arc::new(silent);
            }
            changed
        });
        self.endpoints.send_if_modified(|known| {
            let changed = *known != endpoints;
            if changed {
                *known = endpoints;
            }
            changed
        });
    }
}

fn without(listed: &Endpoints, silent: &HashSet<String>) -> Endpoints {
    if silent.is_empty() || silent.len() == listed.len() {
        return listed.clone();
    }
    Arc::new(listed.iter().filter(|address| !silent.contains(*address)).cloned().collect())
}

/// How often each instance has not answered.
#[derive(Default)]
struct Misses(HashMap<String, u32>);

#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// It has not answered for long enough.
    Silent,
    /// It answers.
    Back,
}

impl Misses {
    fn note(&mut self, address: &str, alive: bool) -> Option<Turn> {
        if alive {
            return self.0.remove(address).filter(|missed| *missed >= MISSES).map(|_| Turn::Back);
        }
        let missed = self.0.entry(address.to_owned()).or_default();
        *missed = missed.saturating_add(1);
        (*missed == MISSES).then_some(Turn::Silent)
    }

    fn silent(&self) -> HashSet<String> {
        self.0.iter().filter(|(_, missed)| **missed >= MISSES).map(|(address, _)| address.clone()).collect()
    }

    fn forget_others(&mut self, listed: &[String]) {
        self.0.retain(|address, _| listed.contains(address));
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::Server;

    use super::*;

    #[test]
    fn an_instance_is_silent_after_some_looks_in_a_row_and_back_with_its_first_answer() {
        let mut misses = Misses::default();
        for _ in 1..MISSES {
            assert_eq!(misses.note("a", false), None);
        }
        assert_eq!(misses.note("a", true), None, "it was late, not silent");
        for _ in 1..MISSES {
            assert_eq!(misses.note("a", false), None);
        }
        assert!(misses.silent().is_empty());
        assert_eq!(misses.note("a", false), Some(Turn::Silent));
        assert_eq!(misses.note("a", false), None, "told once");
        assert_eq!(misses.silent(), HashSet::from(["a".to_owned()]));
        assert_eq!(misses.note("a", true), Some(Turn::Back));
        assert_eq!(misses.note("a", true), None);
        misses.note("b", false);
        misses.forget_others(&["a".to_owned()]);
        assert!(misses.0.is_empty());
    }

    #[test]
    fn with_nobody_left_all_are_there() {
        let listed: Endpoints = Arc::new(vec!["a".to_owned(), "b".to_owned()]);
        let silent = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<HashSet<_>>();
        assert_eq!(*without(&listed, &silent(&["a"])), ["b"]);
        assert_eq!(without(&listed, &silent(&[])), listed);
        assert_eq!(without(&listed, &silent(&["a", "b"])), listed);
    }

    async fn serve(listener: TcpListener, end: CancellationToken) {
        let (_reporter, health) = tonic_health::server::health_reporter();
        let incoming = TcpListenerStream::new(listener);
        Server::builder().add_service(health).serve_with_incoming_shutdown(incoming, end.cancelled()).await.unwrap();
    }

    #[tokio::test]
    async fn an_instance_that_dies_is_taken_out_and_comes_back_when_it_answers() {
        let end = CancellationToken::new();
        let (stays, dies) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let [a, b] = [&stays, &dies].map(|l| l.local_addr().unwrap().to_string());
        let death = end.child_token();
        tokio::spawn(serve(stays, end.clone()));
        let dying = tokio::spawn(serve(dies, death.clone()));
        let listed = Discovery::start(&format!("static:{a},{b}"), end.clone()).unwrap();
        let living = living(&listed, "storage", Dialer::plain("storage"), end.clone());
        let mut watch = living.watch();
        watch.wait_for(|e| e.len() == 2).await.unwrap();
        death.cancel();
        dying.await.unwrap();
        watch.wait_for(|e| **e == [a.clone()]).await.unwrap();
        assert!(living.is_silent(&b) && !living.is_silent(&a));
        assert_eq!(listed.current().len(), 2, "what is listed is not touched");
        tokio::spawn(serve(TcpListener::bind(&b).await.unwrap(), end.clone()));
        watch.wait_for(|e| e.len() == 2).await.unwrap();
        assert!(!living.is_silent(&b));
        end.cancel();
    }
}
