//! Regenerates `src/gen` from the `.proto` files and fails when what is committed differs: the generated code cannot drift.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use kith_platform::{Serves, Service};

/// The gRPC services of the platform, in the order of its table.
fn rpcs() -> Vec<&'static str> {
    let of = |service: &Service| match service.serves() {
        Serves::Platform(rpcs) => rpcs.iter().map(|rpc| rpc.name).collect(),
        Serves::Lines(name) => vec![name],
        Serves::Nobody | Serves::Clients => Vec::new(),
    };
    Service::ALL.iter().flat_map(of).collect()
}

/// Every `.proto` file below `kith`: those that hold messages alone, then those of the services in the order of the table, so that a new one
/// moves nothing.
fn protos(root: &Path) -> Vec<PathBuf> {
    let rpcs = rpcs();
    let mut found = Vec::new();
    for path in below(&root.join("kith")) {
        let text = fs::read_to_string(&path).expect("a .proto file");
        let word = |line: &str, word: &str| {
            let rest = line.strip_prefix(word)?.strip_prefix(' ')?;
            rest.split(|c: char| !c.is_alphanumeric() && c != '.' && c != '_').next().map(str::to_owned)
        };
        let package = text.lines().find_map(|line| word(line, "package")).expect("a package");
        let service = text.lines().find_map(|line| word(line, "service"));
        let place = service.map(|name| {
            let name = format!("{package}.{name}");
            rpcs.iter()
                .position(|rpc| *rpc == name)
                .unwrap_or_else(|| panic!("{name} is in no row of services/platform"))
        });
        found.push((place, path));
    }
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(below(&path));
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    found
}

/// The modules of the packages, for generated files of these names: `kith.<area>.<version>.rs`.
fn modules<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut areas: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in names {
        let parts: Vec<&str> = name.split('.').collect();
        if let ["kith", area, version, "rs"] = parts[..] {
            areas.entry(area).or_default().push(version);
        }
    }
    let mut text = "//! The packages. Written by `cargo protogen` from the `.proto` files.\n".to_owned();
    for (area, mut versions) in areas {
        versions.sort_unstable();
        text += &format!("\n/// `kith.{area}`.\npub mod {area} {{\n");
        for version in versions {
            text += &format!("    /// `kith.{area}.{version}`.\n    pub mod {version} {{\n");
            text += &format!("        include!(\"kith.{area}.{version}.rs\");\n    }}\n");
        }
        text += "}\n";
    }
    text
}

#[test]
fn generated_code_matches_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile(protos(root), [root]).expect("the .proto files compile");
    let out = tempfile::tempdir().expect("a temporary folder");
    let descriptors = out.path().join("descriptors.bin");
    fs::write(&descriptors, prost::Message::encode_to_vec(&files)).expect("descriptors are written");

    tonic_prost_build::configure()
        .bytes(".kith")
        .btree_map(".kith")
        .out_dir(out.path())
        .compile_fds(files)
        .expect("code is generated");

    let listed = |folder: &Path| -> Vec<OsString> {
        let entries = fs::read_dir(folder).expect("the folder is listed");
        entries.map(|entry| entry.expect("an entry").file_name()).collect()
    };
    let names = listed(out.path());
    let packages = modules(names.iter().filter_map(|name| name.to_str()));
    fs::write(out.path().join("mod.rs"), packages).expect("the modules are written");

    let committed = root.join("src/gen");
    fs::create_dir_all(&committed).expect("src/gen exists");
    let mut drifted = Vec::new();
    for name in listed(out.path()) {
        let fresh = fs::read(out.path().join(&name)).expect("a generated file");
        let target = committed.join(&name);
        if fs::read(&target).ok().as_deref() != Some(&fresh) {
            fs::write(&target, fresh).expect("the file is updated");
            drifted.push(name);
        }
    }
    assert!(drifted.is_empty(), "src/gen was out of date and has been regenerated, commit it: {drifted:?}");
}
