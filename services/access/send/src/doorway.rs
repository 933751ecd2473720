//! Check, then append: the one way of a message into storage.

use std::{sync::Arc, time::Instant};

use kith_clients::storage::Storage;
use kith_contract::ids;
use kith_proto::{chat::v1::Receipt, storage::v1::AppendRequest};
use kith_rpc::error::Error;
use tonic::Code;

use crate::{
    draft::{Checked, Draft},
    limit::SentBytes,
};

/// The doorway. Cheap to clone.
#[derive(Clone)]
pub struct Doorway {
    storage: Storage,
    /// None: whoever sends here is trusted with how much.
    sent: Option<Arc<SentBytes>>,
}

impl Doorway {
    /// Into this storage layer, for backends: how much they send is theirs.
    pub fn of_lines(storage: Storage) -> Self {
        Self { storage, sent: None }
    }

    /// Into this storage layer, for users' clients, each of which sends at most so many bytes a minute.
    pub fn of_clients(storage: Storage, bytes_per_minute: u32) -> Self {
        Self { storage, sent: Some(Arc::new(SentBytes::new(bytes_per_minute))) }
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
        let checked = draft.check().and_then(|checked| {
            if let Some(sent) = &self.sent {
                sent.check(&checked.draft)?;
            }
            Ok(checked)
        });
        let result = match checked {
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
        let Checked { conversation_id, recipient_id, draft } = checked;
        let named = recipient_id.is_some();
        let peer = recipient_id.or_else(|| ids::direct_peer(&conversation_id, &draft.sender_id).map(str::to_owned));
        let peers = peer.into_iter().collect();
        let request = AppendRequest { conversation_id, draft: Some(draft), privileged, peers };
        self.storage.append(request).await.map_err(|error| match error.code {
            Code::NotFound if named => Error::not_found("recipient_id: no such user"),
            _ => error,
        })
    }
}
