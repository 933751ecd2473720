//! The short-connection external HTTP API.
