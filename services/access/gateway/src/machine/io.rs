//! What goes into a [`Machine`](super::Machine) and what comes out of it.

use std::{sync::Arc, time::Duration};

use axum::extract::ws::Utf8Bytes;
use kith_clients::auth::Claims;
use kith_contract::message::Position;
use kith_proto::chat::v1::Receipt;
use kith_rpc::error::Error;

use super::{
    order::{Item, Need},
    sends::Send,
};

/// Settings of a gateway that a connection heeds.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Between two signs of life.
    pub heartbeat: Duration,
    /// Client frames per second.
    pub frames_per_second: u32,
    /// Frames that may wait for a slow reader.
    pub frames_queued: usize,
}

/// What reached the gateway for this connection, ready to be shown; shared by all connections that it is for.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// Messages.
    Messages {
        /// Ascending per conversation.
        items: Arc<[Item]>,
        /// Conversations that have more for this device.
        more: Arc<[Arc<str>]>,
        /// Part of the login catch-up.
        catch_up: bool,
        /// Its end.
        done: bool,
        /// It could not be finished.
        failed: bool,
    },
    /// An event frame, written.
    Event(Arc<str>),
}

impl Delivery {
    /// What it takes as text.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Messages { items, .. } => items.iter().map(|item| item.json.len()).sum(),
            Self::Event(text) => text.len(),
        }
    }
}

/// A step of the gateway's own catch-up.
#[derive(Debug, Default)]
pub struct CatchUpPage {
    /// Ascending per conversation.
    pub items: Vec<Item>,
    /// Conversations that have more.
    pub more: Vec<Arc<str>>,
    /// Where to go on; none at the end.
    pub next: Option<String>,
}

/// What storage has behind a cursor of the client.
#[derive(Debug)]
pub enum Compared {
    /// Messages, ascending.
    Found {
        /// Those that come first.
        items: Vec<Item>,
        /// Whether there are more.
        has_more: bool,
        /// The newest seq of the conversation.
        end: u64,
    },
    /// The user may not see the conversation, or there is none.
    Invisible,
    /// The conversation could not be read.
    Failed,
}

/// Messages after a place, as storage has them.
#[derive(Debug, Default)]
pub struct Pulled {
    /// Ascending.
    pub items: Vec<Item>,
    /// Whether there are more.
    pub has_more: bool,
}

/// What comes in.
#[derive(Debug)]
pub enum Input {
    /// A text frame.
    Text(Utf8Bytes),
    /// A binary frame: none is known in this subprotocol.
    Binary,
    /// A control frame: a sign of life.
    Control,
    /// The answer to [`Job::Authenticate`].
    Authenticated(Result<Arc<Claims>, Error>),
    /// See whether the token has been revoked.
    Recheck,
    /// The answer to [`Job::Recheck`], about these claims.
    Rechecked(Arc<Claims>, Result<(), Error>),
    /// From `sessions`.
    Delivery(Delivery),
    /// Something may have been lost: read it from storage.
    Suspect,
    /// Deliveries were left out: they are read from storage.
    LeftOut,
    /// The answer to [`Job::Send`].
    Sent {
        /// What was in order.
        key: String,
        /// The frame's id.
        id: String,
        /// What became of it.
        result: Result<Receipt, Error>,
    },
    /// The answer to [`Job::Read`] of a base.
    Base(Arc<str>, Result<u64, Error>),
    /// The answer to [`Job::Read`] of a gap.
    Pulled(Arc<str>, Result<Pulled, Error>),
    /// The answer to [`Job::CatchUp`].
    CaughtUp(Result<CatchUpPage, Error>),
    /// The answer to [`Job::Compare`].
    Compared(Result<Vec<(Arc<str>, Compared)>, Error>),
    /// The client has asked for more than its share.
    Exhausted(Error),
    /// The gateway is going away.
    Drain {
        /// When the client should come back.
        after_ms: u64,
    },
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug)]
pub enum Output {
    /// Write a text frame.
    Frame(String),
    /// Write a WebSocket ping.
    Ping,
    /// Close, and do nothing more.
    Close {
        /// A close code of the contract.
        code: u16,
        /// In words.
        reason: String,
    },
    /// The session is open: make it known.
    Opened(Opened),
    /// The client has given a newer token.
    Renewed(Arc<Claims>),
    /// Do something and bring the answer back.
    Job(Job),
}

/// A session that begins.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Whose it is.
    pub claims: Arc<Claims>,
    /// Its id.
    pub session_id: String,
    /// Where the client says it is.
    pub cursors: Vec<(Arc<str>, u64)>,
    /// Since when.
    pub opened_at: i64,
}

/// Work outside.
#[derive(Debug)]
pub enum Job {
    /// Verify a token.
    Authenticate(String),
    /// See whether the newest token has been revoked.
    Recheck(Arc<Claims>),
    /// Send a message.
    Send {
        /// What was in order.
        key: String,
        /// What to send.
        send: Send,
    },
    /// Acknowledge what arrived; nobody waits for it.
    Ack(Vec<Position>),
    /// Tell the others; nobody waits for it.
    Typing(String),
    /// Read what [`super::order`] needs.
    Read(Need),
    /// Catch up from storage, one page.
    CatchUp {
        /// Where the page before ended.
        cursor: Option<String>,
        /// What was shown already: the catch-up goes on from there, whatever the device acknowledged.
        known: Vec<(Arc<str>, u64)>,
    },
    /// Read what is after the client's own cursors.
    Compare(Vec<(Arc<str>, u64)>),
}
