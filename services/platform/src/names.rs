//! What a service is called in each place, and what follows from its row alone.

use crate::{Declaration, EventLog, Keys, Layer, Rpc, Serves, Service};

impl Service {
    /// In names of objects, in certificates and on the command line.
    pub const fn name(self) -> &'static str {
        self.declaration().name
    }

    /// The service of this name.
    pub fn called(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|service| service.name() == name)
    }

    /// As a field of JSON: `profileSync` of `profile-sync`.
    pub fn field(self) -> String {
        let mut parts = self.name().split('-');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |field, part| field + &capitalized(part))
    }

    /// As a field of Rust code: `profile_sync` of `profile-sync`.
    pub fn ident(self) -> String {
        self.name().replace('-', "_")
    }

    /// The folder of its crate, from the top of the repository.
    pub fn folder(self) -> String {
        match self.layer() {
            Layer::Storage => format!("services/{}", self.name()),
            layer => format!("services/{}/{}", layer.name(), self.name()),
        }
    }

    /// What it is, in sentences.
    pub fn about(self) -> String {
        capitalized(self.declaration().about)
    }

    /// Where it stands.
    pub const fn layer(self) -> Layer {
        self.declaration().layer
    }

    /// Where it serves.
    pub const fn port(self) -> u16 {
        self.declaration().port
    }

    /// Whom it serves.
    pub const fn serves(self) -> Serves {
        self.declaration().serves
    }

    /// Whether each Gateway runs it; else the ChatCluster does.
    pub const fn is_at_gateways(self) -> bool {
        matches!(self.serves(), Serves::Clients)
    }

    /// Whether it listens for anybody.
    pub const fn listens(self) -> bool {
        !matches!(self.serves(), Serves::Nobody)
    }

    /// What it serves to other services of the platform, if it does.
    pub const fn rpcs(self) -> Option<&'static [Rpc]> {
        match self.serves() {
            Serves::Platform(rpcs) => Some(rpcs),
            _ => None,
        }
    }

    /// Those that others call, whose instances the configuration tells how to find.
    pub fn called_by_others() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|service| service.rpcs().is_some())
    }

    /// Whether it reaches the storage engine.
    pub const fn reaches_engine(self) -> bool {
        self.declaration().engine
    }

    /// What it does with the keys of client tokens.
    pub const fn keys(self) -> Keys {
        self.declaration().keys
    }

    /// What it does on the event log.
    pub const fn log(self) -> &'static EventLog {
        let declaration: &'static Declaration = self.declaration();
        &declaration.log
    }

    /// The version that it came with; none: it was always there.
    pub const fn since(self) -> Option<&'static str> {
        self.declaration().since
    }
}

/// `a, b and c`.
pub fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    match names.split_last() {
        Some((last, before)) if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        _ => names.concat(),
    }
}

/// The text with its first letter a capital.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_wherever_they_are_used() {
        let mut seen = std::collections::BTreeSet::new();
        for service in Service::ALL {
            let name = service.name();
            assert!(seen.insert(name), "{name} is declared twice");
            assert!(!name.is_empty() && name.len() <= 16, "{name}: objects are named after ChatCluster and service");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{name}");
            assert!(!name.starts_with('-') && !name.ends_with('-') && !name.contains("--"), "{name}");
            assert_eq!(service.variant(), name.split('-').map(capitalized).collect::<String>(), "the row of {name}");
            assert!(!["valkey", "kafka", OPERATOR].contains(&name), "{name} is another part's");
            assert!(service.declaration().about.ends_with('.'), "{name}: what it is, in sentences");
            assert_eq!(Service::called(name), Some(*service));
        }
    }

    #[test]
    fn versions_are_three_numbers() {
        for since in Service::ALL.iter().filter_map(|service| service.since()) {
            let numbers: Vec<_> = since.split('.').map(str::parse::<u32>).collect();
            assert!(numbers.len() == 3 && numbers.iter().all(Result::is_ok), "{since}");
        }
    }

    #[test]
    fn the_engine_is_reached_from_the_storage_layer_and_the_event_log_from_below_access() {
        for service in Service::ALL {
            assert!(!service.reaches_engine() || service.layer() == Layer::Storage, "{}", service.name());
            assert!(!service.log().is_used() || service.layer() < Layer::Access, "{}", service.name());
            let outside = matches!(service.serves(), Serves::Lines(_) | Serves::Clients);
            assert_eq!(outside, service.layer() == Layer::Access, "{}", service.name());
        }
    }

    #[test]
    fn names_are_listed_as_a_sentence_does() {
        for (names, words) in [(&[][..], ""), (&["a"], "a"), (&["a", "b"], "a and b"), (&["a", "b", "c"], "a, b and c")]
        {
            assert_eq!(listed(names.iter().copied()), words);
        }
        assert_eq!((capitalized("the one"), capitalized("")), ("The one".to_owned(), String::new()));
    }

    use crate::OPERATOR;
}
