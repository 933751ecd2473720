//! The long-connection access layer: WebSocket sessions.
