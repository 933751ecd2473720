//! The one service binary: a subcommand per service.

fn main() {}
