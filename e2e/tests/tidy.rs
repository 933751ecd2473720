//! House rules that a compiler cannot see: the layers of the crate graph, where data stores may be touched, and what no source may hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use kith_platform::{Layer, Service};

/// Longest file without a reason of its own, in lines.
const MAX_LINES: usize = 500;

/// Files that may be longer, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e lies in the workspace").to_owned()
}

/// What crates may use of the workspace that are no service, besides `kith-unify`, which holds no code.
const SHARED: &[(&str, &[&str])] = &[
    ("kith-unify", &[]),
    ("kith-platform", &[]),
    ("kith-proto", &["kith-contract"]),
    ("kith-contract", &[]),
    ("kith-kit", &["kith-platform"]),
    ("kith-rpc", &["kith-contract", "kith-kit", "kith-platform", "kith-proto"]),
    ("kith-eventlog", &["kith-contract", "kith-kit"]),
    ("kith-clients", &["kith-contract", "kith-kit", "kith-platform", "kith-proto", "kith-rpc"]),
    ("kith-send", &["kith-clients", "kith-contract", "kith-proto", "kith-rpc"]),
    ("kith-testing", &["kith-kit"]),
    ("kith-crds", &["kith-platform"]),
    ("kith-operator", &["kith-clients", "kith-crds", "kith-eventlog", "kith-kit", "kith-platform", "kith-rpc"]),
];

/// What every service may use. They never use each other.
const OF_SERVICES: [&str; 6] = ["kith-clients", "kith-contract", "kith-kit", "kith-platform", "kith-proto", "kith-rpc"];

/// The service whose crate has this name.
fn service_of(name: &str) -> Option<Service> {
    Service::called(name.strip_prefix("kith-")?)
}

/// What a crate may use of the workspace; none: it has no place.
fn allowed(name: &str) -> Option<BTreeSet<String>> {
    if let Some(service) = service_of(name) {
        let log = service.log().is_used().then_some("kith-eventlog");
        let doorway = (service.layer() == Layer::Access).then_some("kith-send");
        return Some(OF_SERVICES.into_iter().chain(log).chain(doorway).map(str::to_owned).collect());
    }
    if name == "kith" {
        let services = Service::ALL.iter().map(|service| format!("kith-{}", service.name()));
        return Some(services.chain(["kith-kit", "kith-platform", "kith-rpc"].map(str::to_owned)).collect());
    }
    let (_, may) = SHARED.iter().find(|(shared, _)| *shared == name)?;
    Some(may.iter().map(|name| (*name).to_owned()).collect())
}

/// Names under `[dependencies]` of a manifest; development dependencies are free, tests may start any part.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut in_section = false;
    let mut names = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_section = line.trim() == "[dependencies]";
        } else if in_section && let Some((name, _)) = line.split_once(['.', '=', ' ']) {
            names.insert(name.trim().to_owned());
        }
    }
    names.remove("");
    names
}

fn manifests() -> Vec<(String, String, PathBuf)> {
    let mut found = Vec::new();
    for path in sources(&root(), &["toml"]) {
        if path.file_name().is_some_and(|n| n == "Cargo.toml") && path.parent() != Some(&root()) {
            let text = fs::read_to_string(&path).expect("a manifest");
            let name = text
                .lines()
                .find_map(|l| l.strip_prefix("name = "))
                .expect("a package name")
                .trim_matches('"')
                .to_owned();
            found.push((name, text, path));
        }
    }
    found
}

fn sources(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).expect("a UTF-8 name").to_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | ".git" | "gen" | "node_modules") {
                found.extend(sources(&path, extensions));
            }
        } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e)) {
            found.push(path);
        }
    }
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("below the root").display().to_string()
}

#[test]
fn calls_go_down_the_layers_and_services_meet_only_in_proto() {
    let mut wrong = Vec::new();
    for (name, text, _) in manifests() {
        let Some(may) = allowed(&name) else {
            assert_eq!(name, "kith-e2e", "a crate without a place in the layers: {name}");
            continue;
        };
        let used = dependencies(&text);
        let used = used.iter().filter(|d| d.starts_with("kith") && *d != "kith-unify");
        wrong.extend(used.filter(|d| !may.contains(*d)).map(|dependency| format!("{name} uses {dependency}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_service_has_a_crate_where_the_table_says() {
    let mut found: BTreeMap<String, String> =
        manifests().into_iter().map(|(name, _, path)| (name, relative(path.parent().expect("a folder")))).collect();
    for service in Service::ALL {
        assert_eq!(found.remove(&format!("kith-{}", service.name())), Some(service.folder()));
    }
}

/// Whether a source uses what leads to the engine: its client, or the kit's connections, which every crate that uses the kit could have.
fn reaches_engine(source: &str) -> bool {
    uses(source, "redis", "") || uses(source, "kith_kit", "valkey")
}

/// Whether a source uses what leads to the event log.
fn reaches_log(source: &str) -> bool {
    uses(source, "rdkafka", "") || uses(source, "kith_eventlog", "")
}

/// Whether a source names what begins so in a crate, by its path or in a list of what is used.
fn uses(source: &str, library: &str, module: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let is_named =
        |rest: &str| rest.strip_prefix(module).is_some_and(|next| module.is_empty() || !next.starts_with(is_word));
    let path = format!("{library}::");
    source.match_indices(&path).any(|(at, _)| {
        if source[..at].ends_with(is_word) {
            return false;
        }
        let rest = &source[at + path.len()..];
        let Some(list) = rest.strip_prefix('{') else { return is_named(rest) };
        // Of the list what stands in no list within it.
        let mut depth = 0_usize;
        let mut begins = true;
        for (place, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                _ if c.is_whitespace() => {}
                _ => {
                    if begins && is_named(&list[place..]) {
                        return true;
                    }
                    begins = false;
                }
            }
        }
        false
    })
}

#[test]
fn ways_to_the_engine_and_the_event_log_are_found_wherever_they_stand() {
    for source in [
        "use kith_kit::valkey::Connector;",
        "use kith_kit::{\n    config::{Config, Valkey},\n    valkey::{Connection, Connector},\n};",
        "use kith_kit::{clock, valkey};",
        "    let to = kith_kit::valkey::Connector::new(config);",
        "use redis::Cmd;",
    ] {
        assert!(reaches_engine(source), "{source}");
        assert!(!reaches_log(source), "{source}");
    }
    for source in [
        "use kith_kit::config::Valkey;",
        "use kith_kit::{clock, config::{valkey, Config}};",
        "use kith_kit::{clock};\nuse kith_rpc::{error, valkey};",
        "use kith_kit::valkeys::All;",
        "use my_redis::Cmd;",
        "let valkey = 1;",
    ] {
        assert!(!reaches_engine(source), "{source}");
    }
    for source in ["use kith_eventlog::{consumer, origin::Origin};", "rdkafka::producer::FutureProducer::default()"] {
        assert!(reaches_log(source), "{source}");
    }
}

#[test]
fn only_storage_and_the_operator_reach_the_engine_and_access_reaches_no_kafka() {
    let mut wrong = Vec::new();
    let reached = |folder: &Path, what: fn(&str) -> bool| {
        sources(&folder.join("src"), &["rs"]).iter().any(|path| what(&fs::read_to_string(path).expect("a source")))
    };
    for (name, text, path) in manifests() {
        let place = relative(&path);
        let folder = path.parent().expect("a folder");
        let names = dependencies(&text);
        let others = ["kith-operator", "kith-kit", "kith-testing", "kith-e2e"].contains(&name.as_str());
        let engine = service_of(&name).map_or(others, Service::reaches_engine);
        if !engine && (names.contains("redis") || reached(folder, reaches_engine)) {
            wrong.push(format!("{name} reaches Valkey"));
        }
        let log = service_of(&name).map_or(!place.starts_with("services/access"), |service| service.log().is_used());
        if !log && (names.contains("rdkafka") || reached(folder, reaches_log)) {
            wrong.push(format!("{name} reaches Kafka"));
        }
        if place.starts_with("services") && (names.contains("kube") || names.contains("k8s-openapi")) {
            wrong.push(format!("{name} calls the Kubernetes API"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_stay_short_and_say_what_they_are() {
    let mut wrong = Vec::new();
    for path in sources(&root(), &["rs"]) {
        let text = fs::read_to_string(&path).expect("a source");
        let place = relative(&path);
        let lines = text.lines().count();
        if lines > MAX_LINES && !LONG_FILES.iter().any(|(file, _)| *file == place) {
            wrong.push(format!("{place}: {lines} lines, at most {MAX_LINES}"));
        }
        if !text.trim_start().starts_with("//!") {
            wrong.push(format!("{place}: the first line does not say what the module does"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_source_holds_unfinished_code_or_a_path_of_one_machine() {
    // Put together here, so that this file does not match itself.
    let words = [["to", "do!("].concat(), ["unimple", "mented!("].concat(), ["FIX", "ME"].concat()];
    let folders = [["/ro", "ot/"].concat(), ["/wo", "rk/"].concat()];
    // A folder of that name below another one is not the machine's.
    let absolute = |line: &str, folder: &str| {
        line.match_indices(folder).any(|(at, _)| {
            !line[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '}' | '/' | '*'))
        })
    };
    let mut wrong = Vec::new();
    for path in sources(&root(), &["rs", "sh", "yaml", "yml", "toml", "md", "go", "lua", "proto"]) {
        let text = fs::read_to_string(&path).expect("a source");
        for (number, line) in text.lines().enumerate() {
            let found =
                words.iter().find(|w| line.contains(w.as_str())).or_else(|| folders.iter().find(|f| absolute(line, f)));
            if let Some(word) = found {
                wrong.push(format!("{}:{}: {word}", relative(&path), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every test function of the sources, with the file that holds it.
fn tests() -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for path in sources(&root(), &["rs"]) {
        let text = fs::read_to_string(&path).expect("a source");
        // Whether an attribute stands above that makes a test of the next function; what `proptest!` holds is marked like others.
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                marked = true;
            } else if let Some((_, rest)) = line.split_once("fn ")
                && marked
            {
                let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                found.push((name.to_owned(), path.clone()));
                marked = false;
            }
        }
        // Behaviours are functions that a macro makes tests of, on each platform.
        if path.ends_with("tests/behaviour/mod.rs") {
            let listed = text.lines().map(str::trim).filter_map(|line| line.strip_suffix(','));
            found.extend(listed.map(|name| (name.to_owned(), path.clone())));
        }
    }
    found
}

/// What the cells of the column "test" of a Markdown file's tables name, with the line.
fn named_tests(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut named = Vec::new();
    // Of the table that is being read, once its head is.
    let mut column: Option<Option<usize>> = None;
    for (number, line) in text.lines().enumerate() {
        let Some(row) = line.trim().strip_prefix('|') else {
            column = None;
            continue;
        };
        let cells: Vec<&str> = row.trim_end().trim_end_matches('|').split(" | ").map(str::trim).collect();
        let Some(at) = column else {
            column = Some(cells.iter().position(|cell| *cell == "test"));
            continue;
        };
        let Some(at) = at else { continue };
        if cells.iter().all(|cell| cell.trim_matches('|').trim().chars().all(|c| "-: |".contains(c))) {
            continue;
        }
        let names = cells.get(at).map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect());
        named.push((number + 1, names.unwrap_or_default()));
    }
    named
}

#[test]
fn every_row_about_hostile_callers_names_tests_that_exist() {
    let tests = tests();
    // A function by its name, or a file or folder of the tree that holds tests.
    let exists = |name: &str| {
        let place = root().join(name);
        let file = place.with_extension("rs");
        tests.iter().any(|(function, path)| {
            function == name || (name.contains('/') && (*path == file || path.starts_with(&place)))
        })
    };
    let text = fs::read_to_string(root().join("docs/hostile.md")).expect("the document");
    let rows = named_tests(&text);
    assert!(rows.len() > 40, "the tables are not read any more: {} rows", rows.len());
    let mut wrong = Vec::new();
    for (line, names) in rows {
        if names.is_empty() {
            wrong.push(format!("docs/hostile.md:{line}: names no test"));
        }
        wrong.extend(names.iter().filter(|n| !exists(n)).map(|n| format!("docs/hostile.md:{line}: no test {n}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_column_of_tests_is_found_wherever_it_stands() {
    let text = "| a | test | b |\n| --- | --- | --- |\n| `x` | **live** `one`; `two` | `y` |\n\n| a | b |\n| - | - |\n| `z` | |";
    assert_eq!(named_tests(text), [(3, vec!["one".to_owned(), "two".to_owned()])]);
    assert!(tests().iter().any(|(name, _)| name == "the_column_of_tests_is_found_wherever_it_stands"));
}
