//! Nobody else spells an event, a frame, or a name of the contract's sets: the sources of the workspace are looked through for them.
//!
//! Tests may spell frames and names as a client would; events they name by their kind, too.

#![allow(clippy::unwrap_used)] // a test helper that fails fails its test

use std::{
    fs,
    path::{Path, PathBuf},
};

use kith_contract::{
    events::{Kind, envelope::header},
    frames::example,
    kinds::{ConversationKind, Join, MessageType, Platform, Provider, Role},
    problem,
};

/// Words that mean something else, too.
const COMMON: [&str; 8] = ["text", "file", "group", "system", "web", "admin", "member", "open"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | "gen" | "node_modules" | ".git" | "contract") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            let place = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            found.push((place, fs::read_to_string(&path).unwrap()));
        }
    }
}

fn all() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for part in ["services", "operator", "crds", "e2e"] {
        sources(&root().join(part), &mut found);
    }
    assert!(found.len() > 200, "the sources are not found any more: {}", found.len());
    found
}

/// A file without its tests; none where it is all tests.
fn shipped<'a>(place: &str, text: &'a str) -> Option<&'a str> {
    let tests = place.contains("/tests/") || place.ends_with("tests.rs") || place.contains("/behaviour/");
    let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    (!tests).then_some(&text[..end])
}

/// The lines that hold one of the spellings.
fn lines(place: &str, text: &str, spellings: &[String]) -> Vec<String> {
    let spelt = |line: &&str| spellings.iter().any(|s| line.contains(s.as_str()));
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .filter(spelt)
        .map(|line| format!("{place}: {}", line.trim()))
        .collect()
}

#[test]
fn no_other_source_spells_a_kind_of_event() {
    let mut spellings: Vec<String> = Kind::ALL.iter().map(|kind| format!("\"{}\"", kind.name())).collect();
    spellings.extend(["\"dev.kith.", "dev.kith.{"].map(str::to_owned));
    let wrong: Vec<String> = all().iter().flat_map(|(place, text)| lines(place, text, &spellings)).collect();
    assert!(wrong.is_empty(), "kith_contract::events::Kind spells them: {wrong:#?}");
}

#[test]
fn no_source_but_tests_spells_a_frame_a_header_or_a_problem() {
    let mut spellings = Vec::new();
    for (name, _) in example::CLIENT.iter().chain(&example::SERVER) {
        spellings.extend([format!(r#""type":"{name}""#), format!(r#""type": "{name}""#)]);
    }
    let headers = [
        header::SPEC_VERSION,
        header::ID,
        header::TYPE,
        header::SOURCE,
        header::TIME,
        header::PARTITION_KEY,
        header::CLUSTER,
        header::PARTITION,
        header::VERSION,
        header::ERROR,
    ];
    spellings.extend(headers.map(|name| format!("\"{name}\"")));
    spellings.push(format!("\"{}\"", problem::MEDIA_TYPE));
    let mut wrong = Vec::new();
    for (place, text) in &all() {
        wrong.extend(shipped(place, text).map(|text| lines(place, text, &spellings)).unwrap_or_default());
    }
    assert!(wrong.is_empty(), "kith_contract spells them: {wrong:#?}");
}

#[test]
fn no_service_spells_a_platform_a_role_a_type_or_a_provider() {
    let sets =
        [ConversationKind::NAMES, Join::NAMES, MessageType::NAMES, Platform::NAMES, Provider::NAMES, Role::NAMES];
    let names = sets.into_iter().flatten().filter(|name| !COMMON.contains(name));
    let spellings: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
    let mut wrong = Vec::new();
    for (place, text) in all().iter().filter(|(place, _)| place.starts_with("services/")) {
        wrong.extend(shipped(place, text).map(|text| lines(place, text, &spellings)).unwrap_or_default());
    }
    assert!(wrong.is_empty(), "kith_contract::kinds spells them: {wrong:#?}");
}

#[test]
fn every_page_that_the_http_api_names_is_in_the_repository() {
    let document = fs::read_to_string(root().join("docs/openapi.json")).unwrap();
    let words = document.split(|c: char| c.is_whitespace() || matches!(c, '"' | '(' | ')' | ',' | ';' | '`'));
    let pages = words
        .map(|word| word.trim_end_matches(['.', ':']))
        .filter(|word| Path::new(word).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("md")));
    let missing: Vec<&str> = pages.filter(|page| !root().join(page).is_file()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
