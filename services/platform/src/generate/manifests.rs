//! The crates of the services, where Cargo wants them named.

use super::{Part, each};
use crate::Service;

const BEGIN: &str = "# Services: written by `cargo servicegen` from services/platform.";
const END: &str = "# End of services.";

/// Where each crate lies.
pub(super) fn of_the_workspace() -> Vec<Part> {
    lines(|service| format!("kith-{} = {{ path = \"{}\" }}\n", service.name(), service.folder()))
}

/// What the binary runs.
pub(super) fn of_the_binary() -> Vec<Part> {
    lines(|service| format!("kith-{}.workspace = true\n", service.name()))
}

fn lines(line: impl Fn(Service) -> String) -> Vec<Part> {
    vec![Part { begin: BEGIN, end: END, content: each(line) }]
}
