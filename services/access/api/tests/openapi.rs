//! The committed `docs/openapi.json` is what the code serves; run it once to regenerate the file, then commit.

use std::path::Path;

#[test]
fn the_committed_document_matches_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../docs/openapi.json");
    let fresh = kith_api::document();
    assert!(fresh.len() > 1_000, "the document was written");
    if std::fs::read_to_string(&path).ok().as_deref() != Some(&fresh) {
        std::fs::write(&path, fresh).expect("docs/openapi.json is written");
        panic!("docs/openapi.json was out of date and has been regenerated, commit it");
    }
}
