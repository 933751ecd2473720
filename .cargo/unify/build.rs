//! Makes the build-dependencies count: without a build script they would be ignored.

fn main() {}
