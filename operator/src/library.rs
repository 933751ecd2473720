//! The storage engine's function library. It belongs to the versions of Kith that run, not to the operator's.

use kith_crds::conditions::{self, Finding, reason};

use crate::{
    dataplane::types::Library,
    render::versions::{self, PREVIOUS},
};

/// Libraries that this operator carries: the version of Kith that uses each, and its text. That of a version that is out never changes.
const LIBRARIES: [(&str, &str); 2] = [
    (PREVIOUS, include_str!("library/0.1.0.lua")),
    (env!("CARGO_PKG_VERSION"), include_str!("../../services/storage/lua/kith1.lua")),
];

/// The library to have loaded while a ChatCluster is to be of version `planned` and storage of the versions `running` is there: that of the
/// newest of them. A library serves storage of its version and of the one before, and no later one. So on the way up it is loaded before any
/// storage needs it, and on the way down the older one is not before the last that does is gone. None while storage runs that is newer than all
/// that this operator knows: what the nodes hold stays.
pub fn wanted<'a>(planned: &str, running: impl IntoIterator<Item = &'a str>) -> Result<Option<Library>, Finding> {
    let of_plan = of_version(planned).ok_or_else(|| {
        let words = format!("this operator has no function library for version {planned}");
        Finding::fails(conditions::READY, reason::UNSUPPORTED_VERSION, words)
    })?;
    let numbers = versions::numbers;
    let newest =
        running.into_iter().filter(|version| numbers(version).is_some()).max_by_key(|version| numbers(version));
    Ok(match newest.filter(|newest| numbers(newest) > numbers(planned)) {
        Some(newer) => of_version(newer),
        None => Some(of_plan),
    })
}

/// The library of a version of Kith, if this operator carries it.
fn of_version(version: &str) -> Option<Library> {
    let (_, code) = LIBRARIES.iter().find(|(of, _)| *of == version)?;
    Some(Library { name: name(code)?.to_owned(), code: (*code).into() })
}

/// The name in the first line, `#!lua name=<name>`.
fn name(code: &str) -> Option<&str> {
    code.lines().next()?.strip_prefix("#!lua")?.split_whitespace().find_map(|word| word.strip_prefix("name="))
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    const PRESENT: &str = env!("CARGO_PKG_VERSION");

    fn code(version: &str) -> &'static str {
        LIBRARIES.iter().find(|(of, _)| *of == version).expect("a library").1
    }

    #[test]
    fn every_library_has_a_name_and_unknown_versions_are_refused() {
        for (version, code) in LIBRARIES {
            let library = wanted(version, []).unwrap().expect("a library");
            assert!(library.name.starts_with("kith") && library.code == code, "{version}");
        }
        assert_eq!(wanted("9.9.9", [PRESENT]).unwrap_err().reason, reason::UNSUPPORTED_VERSION);
    }

    #[test]
    fn the_newest_version_that_is_planned_or_runs_says_which_library_is_loaded() {
        for (name, planned, running, of) in [
            ("the first pods", PRESENT, &[][..], PRESENT),
            ("the first pods of the version before", PREVIOUS, &[], PREVIOUS),
            ("up, nothing rolls yet", PRESENT, &[PREVIOUS, PREVIOUS], PRESENT),
            ("up, half-way", PRESENT, &[PREVIOUS, PRESENT], PRESENT),
            ("down, nothing rolls yet", PREVIOUS, &[PRESENT, PRESENT], PRESENT),
            ("down, the last newer one", PREVIOUS, &[PREVIOUS, PRESENT, PREVIOUS], PRESENT),
            ("down, all rolled", PREVIOUS, &[PREVIOUS, PREVIOUS], PREVIOUS),
            ("what is no version says nothing", PREVIOUS, &["", "newest"], PREVIOUS),
        ] {
            let library = wanted(planned, running.iter().copied()).unwrap().expect(name);
            assert_eq!(library.code, code(of), "{name}");
        }
    }

    #[test]
    fn what_newer_storage_than_this_operators_has_loaded_stays() {
        for planned in [PREVIOUS, PRESENT] {
            assert_eq!(wanted(planned, [PREVIOUS, "9.0.0", PRESENT]), Ok(None), "{planned}");
        }
    }

    #[test]
    fn the_library_of_a_version_that_is_out_is_what_it_was() {
        assert_eq!(format!("{:016x}", xxh3_64(code(PREVIOUS).as_bytes())), "bc5b10a221da972d");
    }

    #[test]
    fn the_present_library_serves_storage_of_the_version_before() {
        let version = |code: &str| {
            let text = code.lines().find_map(|line| line.strip_prefix("local VERSION = '")).expect("a version");
            let (major, minor) = text.trim_end_matches('\'').split_once('.').expect("two numbers");
            (major.parse::<u32>().expect("a number"), minor.parse::<u32>().expect("a number"))
        };
        let functions =
            |code: &'static str| -> Vec<&str> { code.split('\'').filter(|word| word.starts_with("k1_")).collect() };
        let (before, now) = (version(code(PREVIOUS)), version(code(PRESENT)));
        assert!(before.0 == now.0 && before.1 <= now.1, "{before:?} before {now:?}");
        let there = functions(code(PRESENT));
        let gone: Vec<_> = functions(code(PREVIOUS)).into_iter().filter(|name| !there.contains(name)).collect();
        assert!(gone.is_empty() && !there.is_empty(), "functions that the version before calls are gone: {gone:?}");
    }
}
