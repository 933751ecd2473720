//! What happens to the platform as local processes when something is wrong with it; each test starts its own. What works is shown by
//! `local`, whose tests share one.
#![allow(missing_docs)]

mod faults;
mod hostile;
mod repair;
mod sessions;
