//! Which instance owns a user, as this instance sees it: rendezvous hashing over the ready endpoints.

use kith_clients::sessions::key;
use kith_kit::rendezvous;
use kith_rpc::discovery::Endpoints;

/// The instances as last seen.
#[derive(Debug, Clone, Default)]
pub struct Owners {
    me: String,
    endpoints: Endpoints,
}

/// Who owns a user.
#[derive(Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// This instance.
    Me,
    /// That one.
    Other(&'a str),
    /// Nobody is known yet.
    Unknown,
}

impl Owners {
    /// This instance's own address, and nobody known yet.
    pub fn new(me: String) -> Self {
        Self { me, endpoints: Endpoints::default() }
    }

    /// Takes a new view; says whether it differs.
    pub fn update(&mut self, endpoints: Endpoints) -> bool {
        let changed = self.endpoints != endpoints;
        self.endpoints = endpoints;
        changed
    }

    /// The owner of a user.
    pub fn of(&self, user: &str) -> Owner<'_> {
        match rendezvous::owner(&self.endpoints, key(user)) {
            None => Owner::Unknown,
            Some(owner) if *owner == self.me => Owner::Me,
            Some(owner) => Owner::Other(owner),
        }
    }

    /// Whether the others know of this instance.
    pub fn is_listed(&self) -> bool {
        self.endpoints.contains(&self.me)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_instances_agree_on_every_owner() {
        let endpoints: Endpoints = vec!["10.0.0.1:7443".to_owned(), "10.0.0.2:7443".to_owned()].into();
        let mut views: Vec<Owners> = endpoints.iter().cloned().map(Owners::new).collect();
        assert!(
            views.iter_mut().all(|v| v.of("alice") == Owner::Unknown && v.update(endpoints.clone()) && v.is_listed())
        );
        for user in (0..100).map(|i| format!("user-{i}")) {
            let mine = views.iter().filter(|v| v.of(&user) == Owner::Me).count();
            assert_eq!(mine, 1, "{user}");
        }
        assert!(!views[0].update(endpoints));
    }
}
