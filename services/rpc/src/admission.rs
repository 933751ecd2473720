//! Which connections a listener admits: so many in all, and from one address so many that have not said yet whose they are.
//!
//! Many users may share one address (a proxy, a load balancer), so those who are known do not count for their address but for themselves.
//! What is not known yet costs little and has little time; so nobody who says nothing takes the place of somebody who does.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds of one listener.
#[derive(Debug, Clone, Copy)]
pub struct Seats {
    /// Connections at once; the next ones wait in the listener's backlog.
    pub all: usize,
    /// Of these, connections from one address that are not known yet; the next ones are closed at once.
    pub unknown_per_address: usize,
    /// Connections of one known caller that count as known; more of them are treated as unknown ones.
    pub per_caller: usize,
}

/// Counts the connections of a listener.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

struct Inner {
    seats: Seats,
    all: Arc<Semaphore>,
    addresses: Mutex<HashMap<IpAddr, usize>>,
    callers: Mutex<HashMap<String, usize>>,
}

/// A place among all, taken before a connection is accepted.
pub struct Place(#[allow(dead_code)] OwnedSemaphorePermit);

/// A connection's seat; given back when the last clone of it is dropped.
pub struct Seat {
    inner: Arc<Inner>,
    whose: Mutex<Whose>,
    _place: Place,
}

enum Whose {
    Address(IpAddr),
    Caller(String),
}

impl Admission {
    /// With these bounds.
    pub fn new(seats: Seats) -> Self {
        let all = Arc::new(Semaphore::new(seats.all));
        Self(Arc::new(Inner { seats, all, addresses: Mutex::default(), callers: Mutex::default() }))
    }

    /// Waits until there is a place for one more connection.
    pub async fn place(&self) -> Option<Place> {
        // Never closed, so acquiring fails never.
        self.0.all.clone().acquire_owned().await.ok().map(Place)
    }

    /// Seats a connection; none when its address has too many that are not known.
    pub fn seat(&self, place: Place, address: SocketAddr) -> Option<Arc<Seat>> {
        let address = network(address.ip());
        if !enter(&self.0.addresses, address, self.0.seats.unknown_per_address) {
            metrics::counter!("kith_connections_refused_total").increment(1);
            return None;
        }
        let whose = Mutex::new(Whose::Address(address));
        Some(Arc::new(Seat { inner: self.0.clone(), whose, _place: place }))
    }
}

impl Seat {
    /// The connection's caller has shown who they are. Their connections beyond the bound stay unknown ones.
    pub fn known_as(&self, caller: &str) {
        let mut whose = self.whose.lock();
        let Whose::Address(address) = &*whose else { return };
        if enter(&self.inner.callers, caller.to_owned(), self.inner.seats.per_caller) {
            leave(&self.inner.addresses, address);
            *whose = Whose::Caller(caller.to_owned());
        }
    }

    /// Whether it is known whose connection this is.
    pub fn is_known(&self) -> bool {
        matches!(*self.whose.lock(), Whose::Caller(_))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        match &*self.whose.lock() {
            Whose::Address(address) => leave(&self.inner.addresses, address),
            Whose::Caller(caller) => leave(&self.inner.callers, caller),
        }
    }
}

fn enter<K: Hash + Eq>(counts: &Mutex<HashMap<K, usize>>, key: K, most: usize) -> bool {
    let mut counts = counts.lock();
    let count = counts.entry(key).or_insert(0);
    let fits = *count < most;
    *count += usize::from(fits);
    fits
}

/// An entry is there only as long as somebody is in it.
fn leave<K: Hash + Eq>(counts: &Mutex<HashMap<K, usize>>, key: &K) {
    let mut counts = counts.lock();
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Who has one address of IPv6 has all of its /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        Admission::new(Seats { all: 8, unknown_per_address: 2, per_caller: 2 })
    }

    async fn seat(admission: &Admission, address: &str) -> Option<Arc<Seat>> {
        admission.seat(admission.place().await.unwrap(), SocketAddr::new(address.parse().unwrap(), 1))
    }

    #[tokio::test]
    async fn one_address_holds_so_many_unknown_connections_and_others_are_not_touched() {
        let admission = admission();
        let (first, second) = (seat(&admission, "10.0.0.1").await, seat(&admission, "10.0.0.1").await);
        assert!(first.is_some() && second.is_some());
        assert!(seat(&admission, "10.0.0.1").await.is_none());
        assert!(seat(&admission, "10.0.0.2").await.is_some());
        drop(first);
        assert!(seat(&admission, "10.0.0.1").await.is_some(), "a place that was given back is free");
    }

    #[tokio::test]
    async fn who_is_known_makes_room_for_others_behind_the_same_address() {
        let admission = admission();
        let known = [seat(&admission, "10.0.0.1").await.unwrap(), seat(&admission, "10.0.0.1").await.unwrap()];
        for seat in &known {
            seat.known_as("alice");
        }
        known[0].known_as("bob");
        let others = [seat(&admission, "10.0.0.1").await.unwrap(), seat(&admission, "10.0.0.1").await.unwrap()];
        others[0].known_as("alice");
        assert!(!others[0].is_known(), "more than so many of one caller stay unknown");
        others[1].known_as("bob");
        assert!(others[1].is_known());
        drop((known, others));
        assert!(admission.0.addresses.lock().is_empty() && admission.0.callers.lock().is_empty());
        assert_eq!(admission.0.all.available_permits(), 8);
    }

    #[tokio::test]
    async fn a_network_of_ipv6_counts_as_one_address() {
        let admission = admission();
        let held = [seat(&admission, "2001:db8::1").await, seat(&admission, "2001:db8::2").await];
        assert!(held.iter().all(Option::is_some));
        assert!(seat(&admission, "2001:db8::ffff:3").await.is_none());
        assert!(seat(&admission, "2001:db8:0:1::1").await.is_some());
        assert!(seat(&admission, "::ffff:10.0.0.1").await.is_some());
    }
}
