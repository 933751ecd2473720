//! Regenerates `src/gen` from the `.proto` files and fails when what is committed differs: the generated code cannot drift.

use std::{fs, path::Path};

#[test]
fn generated_code_matches_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos: Vec<_> = [
        "chat/v1/message",
        "storage/v1/messages",
        "storage/v1/conversations",
        "storage/v1/users",
        "storage/v1/peer",
        "sessions/v1/sessions",
        "business/v1/business",
    ]
    .iter()
    .map(|p| root.join(format!("kith/{p}.proto")))
    .collect();
    let files = protox::compile(&protos, [root]).expect("the .proto files compile");
    let out = tempfile::tempdir().expect("a temporary folder");
    let descriptors = out.path().join("descriptors.bin");
    fs::write(&descriptors, prost::Message::encode_to_vec(&files)).expect("descriptors are written");

    tonic_prost_build::configure()
        .bytes(".kith")
        .btree_map(".kith")
        .out_dir(out.path())
        .compile_fds(files)
        .expect("code is generated");

    let committed = root.join("src/gen");
    let mut drifted = Vec::new();
    for entry in fs::read_dir(out.path()).expect("the temporary folder is listed") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_owned();
        let fresh = fs::read(&path).expect("a generated file");
        let target = committed.join(&name);
        if fs::read(&target).ok().as_deref() != Some(&fresh) {
            fs::create_dir_all(&committed).expect("src/gen exists");
            fs::write(&target, fresh).expect("the file is updated");
            drifted.push(name);
        }
    }
    assert!(drifted.is_empty(), "src/gen was out of date and has been regenerated, commit it: {drifted:?}");
}
