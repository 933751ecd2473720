//! The generated files in the repository are those that the types make now.

use std::fs;
use std::path::Path;

#[test]
fn generated_files_are_current() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let stale: Vec<_> = kith_crds::generate::files(&top)
        .expect("the charts are complete")
        .into_iter()
        .filter(|file| fs::read_to_string(top.join(&file.path)).ok().as_deref() != Some(&file.content))
        .map(|file| file.path)
        .collect();
    assert!(stale.is_empty(), "out of date, run `cargo crdgen`: {stale:?}");
}

#[test]
fn the_chart_holds_no_other_templates() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/kith-crds/templates");
    let generated = kith_crds::generate::from_types().len() - 1;
    let found = fs::read_dir(folder).expect("the chart has templates").count();
    assert_eq!(found, generated, "charts/kith-crds/templates holds a file that `cargo crdgen` does not make");
}
