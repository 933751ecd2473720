//! The storage engine's function library. It belongs to the ChatCluster's version, not to the operator's.

use kith_crds::conditions::{self, Finding, reason};

use crate::dataplane::types::Library;

/// Libraries that this operator carries: the versions of Kith that use each, and its text.
const LIBRARIES: [(&[&str], &str); 1] =
    [(&[env!("CARGO_PKG_VERSION")], include_str!("../../services/storage/lua/kith1.lua"))];

/// The library of a version of Kith.
pub fn of_version(version: &str) -> Result<Library, Finding> {
    let unknown = |words: String| Finding::fails(conditions::READY, reason::UNSUPPORTED_VERSION, words);
    let (_, code) = LIBRARIES
        .iter()
        .find(|(versions, _)| versions.contains(&version))
        .ok_or_else(|| unknown(format!("this operator has no function library for version {version}")))?;
    let name = name(code).ok_or_else(|| unknown("the function library names itself nowhere".to_owned()))?;
    Ok(Library { name: name.to_owned(), code: (*code).into() })
}

/// The name in the first line, `#!lua name=<name>`.
fn name(code: &str) -> Option<&str> {
    code.lines().next()?.strip_prefix("#!lua")?.split_whitespace().find_map(|word| word.strip_prefix("name="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_library_has_a_name_and_unknown_versions_are_refused() {
        for (versions, _) in LIBRARIES {
            for version in versions {
                assert!(of_version(version).unwrap().name.starts_with("kith"));
            }
        }
        assert_eq!(of_version("9.9.9").unwrap_err().reason, reason::UNSUPPORTED_VERSION);
    }
}
