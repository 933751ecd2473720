//! Check, then append: the one way of a message into storage.

use std::time::Instant;

use kith_kit::{
    error::{Error, reason},
    ids::{self, ConversationId},
    storage::Storage,
};
use kith_proto::{
    chat::v1::Receipt,
    storage::v1::{AppendRequest, OpenDirectRequest},
};
use tonic::Code;

use crate::draft::{Checked, Draft};

/// The doorway. Cheap to clone.
#[derive(Clone)]
pub struct Doorway {
    storage: Storage,
}

impl Doorway {
    /// Into this storage layer.
    pub fn new(storage: Storage) -> Self {
        Self { storage }
    }

    /// Stores a message: success means durable. The sender has been authenticated; whether they may write there is storage's answer.
    pub async fn send(&self, draft: Draft) -> Result<Receipt, Error> {
        self.measured(draft, false).await
    }

    /// The same for a sender who need not be a member of the conversation, which the caller has checked.
    pub async fn send_privileged(&self, draft: Draft) -> Result<Receipt, Error> {
        self.measured(draft, true).await
    }

    async fn measured(&self, draft: Draft, privileged: bool) -> Result<Receipt, Error> {
        let started = Instant::now();
        let result = match draft.check() {
            Ok(checked) => self.append(checked, privileged).await,
            Err(error) => Err(error),
        };
        let outcome = match &result {
            Ok(receipt) if receipt.duplicate => "duplicate",
            Ok(_) => "stored",
            Err(error) => error.code_name(),
        };
        metrics::counter!("kith_sends_total", "outcome" => outcome).increment(1);
        metrics::histogram!("kith_send_seconds").record(started.elapsed());
        result
    }

    async fn append(&self, checked: Checked, privileged: bool) -> Result<Receipt, Error> {
        let Checked { conversation_id, kind, recipient_id, draft } = checked;
        let sender_id = draft.sender_id.clone();
        let request = AppendRequest { conversation_id, draft: Some(draft), privileged };
        let missing = match self.storage.append(request.clone()).await {
            Ok(receipt) => return Ok(receipt),
            Err(error) if kind == ConversationId::Direct && may_have_to_be_opened(&error) => error,
            Err(error) => return Err(error),
        };
        // The first message of a direct conversation: rare, so it pays to try without asking first.
        let peers = match &recipient_id {
            Some(peer) => vec![peer.as_str()],
            None => ids::direct_peers(&request.conversation_id, &sender_id),
        };
        let opened = self.open(&sender_id, &peers).await?;
        if !opened {
            return Err(match recipient_id {
                Some(_) => Error::not_found("recipient_id: no such user"),
                None => missing,
            });
        }
        self.storage.append(request).await
    }

    /// Opens the direct conversation with the first peer that exists; ids with colons may be read in several ways.
    async fn open(&self, sender_id: &str, peers: &[&str]) -> Result<bool, Error> {
        for peer in peers {
            let request = OpenDirectRequest { user_a: sender_id.to_owned(), user_b: (*peer).to_owned() };
            match self.storage.open_direct(request).await {
                Ok(_) => return Ok(true),
                Err(error) if error.code == Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// Whether opening the conversation can help: it is not there, or a block made its first row and the sender's is still missing.
fn may_have_to_be_opened(error: &Error) -> bool {
    error.code == Code::NotFound
        || (error.code == Code::PermissionDenied && error.reason.as_deref() == Some(reason::NOT_MEMBER))
}
