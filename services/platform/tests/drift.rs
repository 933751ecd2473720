//! What is written from the table of services is what the table says now.

use std::{fs, path::Path};

#[test]
fn generated_files_are_current() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let stale: Vec<_> = kith_platform::generate::files(&top)
        .expect("every file has a place for what is written")
        .into_iter()
        .filter(|file| fs::read_to_string(top.join(&file.path)).ok().as_deref() != Some(&file.content))
        .map(|file| file.path)
        .collect();
    assert!(stale.is_empty(), "out of date, run `make generate`: {stale:?}");
}
