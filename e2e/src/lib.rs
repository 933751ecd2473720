//! Kith from outside: a chat client, a business line and a reader of the event log, each written from the contract alone; the load that
//! remembers what it was promised; helpers for the local cluster and for the platform as local processes.

pub mod bench;
pub mod business;
pub mod chaos;
pub mod client;
pub mod cluster;
pub mod env;
pub mod hostile;
pub mod kafka;
pub mod ledger;
pub mod load;
pub mod local;
pub mod production;
pub mod smoke;
pub mod target;
pub mod wait;
