//! The committed `docs/openapi.json` is what the code serves; run it once to regenerate the file, then commit. And it is one that clients can
//! be generated from.

use std::{collections::BTreeMap, path::Path};

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

#[test]
fn every_operation_has_an_id_of_its_own() {
    let document: serde_json::Value = serde_json::from_str(&kith_api::document()).expect("JSON");
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let here = format!("{method} {path}");
            let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{here} has no operationId"));
            if let Some(other) = known.insert(id.to_owned(), here.clone()) {
                panic!("{other} and {here} are both called {id}");
            }
        }
    }
    assert!(known.len() > 20, "the operations are not found any more: {known:?}");
}
