//! Asynchronous work off the event log: deliver online, catch up at login.
