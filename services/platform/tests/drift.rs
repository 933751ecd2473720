//! What is written from the table of services is what the table says now.

use std::{fs, path::Path};

use kith_platform::ADMIN_PORT;

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

#[test]
fn the_operators_chart_has_the_admin_port() {
    let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/kith-operator/templates");
    for (file, field) in [("deployment.yaml", "containerPort"), ("metrics.yaml", "port")] {
        let text = fs::read_to_string(templates.join(file)).expect("a template");
        let line = format!("{field}: {ADMIN_PORT}");
        assert!(text.lines().any(|found| found.trim() == line), "{file} has no line {line:?}");
    }
}
