//! Close codes of the WebSocket: they say whether to come back, and when.

/// Drained: reconnect after the hint.
pub const DRAINED: u16 = 4000;
/// Authentication failed: do not retry.
pub const AUTHENTICATION: u16 = 4001;
/// The token has expired: get a new one.
pub const EXPIRED: u16 = 4002;
/// Kicked, or logged in elsewhere: do not retry.
pub const KICKED: u16 = 4003;
/// Too slow a reader, or silent for too long: reconnect and sync.
pub const TOO_SLOW: u16 = 4004;
/// Protocol error: the reason says which.
pub const PROTOCOL: u16 = 4008;
/// Too many connections or frames: reconnect with back-off.
pub const TOO_MANY: u16 = 4029;

/// All of them, with what a client does.
pub const ALL: [(u16, &str); 7] = [
    (DRAINED, "The gateway is going away: reconnect after the hint of the `reconnect` frame."),
    (AUTHENTICATION, "Authentication failed: do not retry."),
    (EXPIRED, "The token has expired: get a new one."),
    (KICKED, "Kicked, or logged in elsewhere: do not retry."),
    (TOO_SLOW, "Too slow a reader, or silent for too long: reconnect and sync."),
    (PROTOCOL, "Protocol error: the reason says which."),
    (TOO_MANY, "Too many connections or frames, or a part of the platform does not answer: reconnect with back-off."),
];

/// Whether a client must stay away, at least with this token.
pub const fn is_final(code: u16) -> bool {
    matches!(code, AUTHENTICATION | EXPIRED | KICKED)
}
