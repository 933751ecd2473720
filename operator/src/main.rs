//! The operator: turns custom resources into a running chat platform and keeps it healthy.

fn main() {}
