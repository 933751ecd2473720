//! Moving partitions between shards: what to move (pure), how to move it (a step at a time), and the life of a ShardRebalance.
//!
//! `planner` decides which partitions go where; `executor` moves them in small batches and derives every step anew from the data plane;
//! `states` says what a ShardRebalance does next. Nothing is remembered that the data plane does not say itself: the operator
//! may die between any two commands.

pub mod automatic;
pub mod controller;
pub mod executor;
pub mod failpoint;
pub mod inventory;
pub mod planner;
pub mod states;
pub mod world;
