//! End-to-end tests through real sockets, the load generator and the test client.

fn main() {}
