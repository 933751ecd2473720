//! Storage over its network interface: a real engine with a replica, and a real Kafka.
#![allow(clippy::unwrap_used)] // a test helper that fails fails its test

mod bytes;
mod common;
mod damage;
mod faults;
mod limits;
mod log;
mod memory;
mod path;
