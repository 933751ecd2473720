//! The places of an instance for requests that are worked on, and the share of them that one user may have. Knows nothing of routes.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kith_rpc::error::Error;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of an instance's places for requests that are worked on, what one user may have: one in so many.
const USERS_SHARE: usize = 8;

/// The places of an instance for requests that are worked on. Cheap to clone.
#[derive(Clone)]
pub(crate) struct InFlight(Arc<Places>);

struct Places {
    all: Arc<Semaphore>,
    per_user: usize,
    users: Mutex<HashMap<String, usize>>,
}

/// A request's place; given back when it is dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    user: String,
    _one: OwnedSemaphorePermit,
}

impl InFlight {
    /// For so many requests at once.
    pub(crate) fn new(requests: u32) -> Self {
        let all = requests.max(1) as usize;
        let per_user = all.div_ceil(USERS_SHARE);
        Self(Arc::new(Places { all: Arc::new(Semaphore::new(all)), per_user, users: Mutex::default() }))
    }

    /// A place for a request of `user`; RESOURCE_EXHAUSTED when that user's are taken, or all.
    pub(crate) fn enter(&self, user: &str) -> Result<Place, Error> {
        let wait = Duration::from_secs(1);
        let mut users = self.0.users.lock();
        let of_user = users.get(user).copied().unwrap_or(0);
        if of_user >= self.0.per_user {
            return Err(Error::exhausted("too many requests of this user at once: wait for their answers", wait));
        }
        let one = self.0.all.clone().try_acquire_owned();
        let one = one.map_err(|_| Error::exhausted("the platform is busy: come back later", wait))?;
        users.insert(user.to_owned(), of_user + 1);
        Ok(Place { places: self.0.clone(), user: user.to_owned(), _one: one })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.places.users.lock();
        if let Some(count) = users.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_takes_an_eighth_of_the_places_and_others_find_theirs() {
        let places = InFlight::new(16);
        let held: Vec<_> = (0..2).map(|_| places.enter("mallory").unwrap()).collect();
        assert_eq!(places.enter("mallory").err().unwrap().http_status(), 429);
        let others: Vec<_> = (0..14).map(|n| places.enter(&format!("u{n}")).unwrap()).collect();
        assert!(places.enter("late").is_err(), "all are taken");
        drop((held, others));
        assert!(places.enter("mallory").is_ok());
        assert!(places.0.users.lock().is_empty(), "who works on nothing is not remembered");
    }
}
