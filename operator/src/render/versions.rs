//! What is rendered differently for different versions of Kith. Pods are rendered as the ChatCluster's version does it, whatever operator does
//! it: a new operator restarts nothing.

use std::collections::BTreeMap;

use kith_crds::names::LABEL_VERSION;
use kith_platform::Service;

/// The version before this operator's, which it renders, too. `e2e/local/previous-release` names its commit.
pub const PREVIOUS: &str = "0.1.0";

/// The version whose pods do not say of which they are; those of later ones do.
const WITHOUT_LABEL: &str = "0.1.0";

/// The label by which what belongs to this version of Kith says so.
pub fn label(version: &str) -> Option<(String, String)> {
    (version != WITHOUT_LABEL).then(|| (LABEL_VERSION.to_owned(), version.to_owned()))
}

/// The version of what has these labels.
pub fn of(labels: &BTreeMap<String, String>) -> &str {
    labels.get(LABEL_VERSION).map_or(WITHOUT_LABEL, String::as_str)
}

/// Whether a ChatCluster of this version has the service.
pub fn has(version: &str, service: Service) -> bool {
    is_in(version, service.since())
}

/// The services that a ChatCluster of this version has, in the order of their table.
pub fn services(version: &str) -> Vec<Service> {
    Service::ALL.iter().copied().filter(|service| has(version, *service)).collect()
}

/// Whether this version has what came with version `since`; without one it was always there.
fn is_in(version: &str, since: Option<&str>) -> bool {
    since.is_none_or(|since| numbers(version) >= numbers(since))
}

/// The three numbers of a version, by which versions are ordered; a candidate for a release counts as that release.
pub fn numbers(version: &str) -> Option<[u32; 3]> {
    let release = version.split_once('-').map_or(version, |(release, _)| release);
    let numbers: Vec<u32> = release.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    numbers.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_a_version_says_so_and_is_taken_at_its_word() {
        for version in [PREVIOUS, env!("CARGO_PKG_VERSION")] {
            let labels = label(version).into_iter().collect();
            assert_eq!(of(&labels), version);
        }
    }

    #[test]
    fn what_came_with_a_version_is_in_that_one_and_in_later_ones() {
        for (version, since, there) in [
            ("0.1.0", None, true),
            ("0.1.0", Some("0.2.0"), false),
            ("0.2.0", Some("0.2.0"), true),
            ("0.2.0-rc.1", Some("0.2.0"), true),
            ("0.10.0", Some("0.2.0"), true),
        ] {
            assert_eq!(is_in(version, since), there, "{version} {since:?}");
        }
        let first: Vec<_> = services(PREVIOUS).into_iter().map(Service::name).collect();
        assert_eq!(first, ["storage", "tasks", "sessions", "business", "api", "gateway"], "what is out stays as it is");
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        assert!(numbers("0.10.0") > numbers("0.9.9"));
        assert_eq!(numbers("1.2.3-rc.1"), Some([1, 2, 3]));
        for no_version in ["", "1.2", "1.2.3.4", "1.2.x", "1.2.-3", "1.2.99999999999"] {
            assert_eq!(numbers(no_version), None, "{no_version}");
        }
    }
}
