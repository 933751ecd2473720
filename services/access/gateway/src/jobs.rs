//! What connections want done outside: storage reads, sends, acknowledgements, typing. Each brings its answer back as an input.

use std::{collections::HashMap, sync::Arc};

use kith_kit::{error::Error, login::Authenticator, storage::Storage};
use kith_proto::{
    chat::v1::Position,
    sessions::v1::SessionAckRequest,
    storage::v1::{ConversationMessages, ListBehindRequest},
};
use kith_send::{Doorway, Limiter};
use tokio::sync::Semaphore;
use tonic::Code;

use crate::{
    inbound::items,
    links::Links,
    machine::{
        io::{CatchUpPage, Input, Job, Opened, Pulled},
        order::Need,
        sends::Send,
    },
    typing::Typing,
};

/// Reads of all connections at once: after a change of owners they all read.
const MAX_READS: usize = 128;
/// Messages of one read.
const READ: u32 = 100;
/// Conversations of one catch-up page.
const PAGE: u32 = 10;
/// Cursors that storage is told with a catch-up.
const MAX_KNOWN: usize = 1_000;

/// What jobs work with.
pub(crate) struct Worker {
    pub(crate) storage: Storage,
    pub(crate) doorway: Doorway,
    pub(crate) authenticator: Authenticator,
    pub(crate) links: Links,
    pub(crate) typing: Typing,
    pub(crate) sends: Limiter,
    reads: Semaphore,
}

impl Worker {
    pub(crate) fn new(
        storage: Storage,
        authenticator: Authenticator,
        links: Links,
        typing: Typing,
        sends: Limiter,
    ) -> Self {
        let doorway = Doorway::new(storage.clone());
        Self { storage, doorway, authenticator, links, typing, sends, reads: Semaphore::new(MAX_READS) }
    }

    /// Does a job of the session `opened`, if it is one that needs a session. All but sends are boxed: they are rare, and larger.
    pub(crate) async fn run(&self, job: Job, opened: Option<Opened>) -> Option<Input> {
        if let Job::Authenticate(token) = &job {
            return Some(Input::Authenticated(Box::pin(self.authenticator.authenticate(token)).await));
        }
        let opened = opened?;
        let user = &opened.claims.sub;
        match job {
            Job::Authenticate(_) => None,
            Job::Recheck => Some(Input::Rechecked(Box::pin(self.authenticator.check_revoked(&opened.claims)).await)),
            Job::Send { key, send } => Some(self.send(user, key, send).await),
            Job::Ack(acks) => {
                Box::pin(self.ack(&opened, acks)).await;
                None
            }
            Job::Typing(conversation_id) => {
                Box::pin(self.typing.tell(user, conversation_id)).await;
                None
            }
            Job::Read(Need::Base(id)) => {
                let base = Box::pin(self.base(&opened, &id)).await;
                Some(Input::Base(id, base))
            }
            Job::Read(Need::Pull { conversation_id, after }) => {
                let pulled = Box::pin(self.pull(user, &conversation_id, after)).await;
                Some(Input::Pulled(conversation_id, pulled))
            }
            Job::CatchUp { cursor, known } => {
                Some(Input::CaughtUp(Box::pin(self.catch_up(&opened, cursor, known)).await))
            }
            Job::Compare(cursors) => Some(Input::Compared(Box::pin(self.compare(user, cursors)).await)),
        }
    }

    async fn send(&self, user: &str, key: String, send: Send) -> Input {
        let result = match self.sends.check(user) {
            Ok(()) => self.doorway.send(send.draft).await,
            Err(wait) => Err(Error::exhausted("too many messages of this user: slow down", wait)),
        };
        Input::Sent { key, id: send.id, result }
    }

    /// Through `sessions`, which coalesces; straight to storage when there is no way to it.
    async fn ack(&self, opened: &Opened, acks: Vec<(String, u64)>) {
        let acks: Vec<_> = acks.into_iter().map(|(conversation_id, seq)| Position { conversation_id, seq }).collect();
        let (user_id, device_id) = (opened.claims.sub.clone(), opened.claims.dev.clone());
        let request = SessionAckRequest { user_id: user_id.clone(), device_id: device_id.clone(), acks: acks.clone() };
        if self.links.ack(request) {
            return;
        }
        // A repeat is fine and a loss too: the client's next acknowledgement covers it.
        if let Err(error) = self.storage.ack(&user_id, &device_id, acks).await {
            tracing::debug!(%error, "an acknowledgement was not stored");
        }
    }

    /// The device's delivered cursor: an acknowledgement of 0 moves nothing and is answered with it.
    async fn base(&self, opened: &Opened, id: &Arc<str>) -> Result<u64, Error> {
        let _permit = self.reads.acquire().await;
        let position = Position { conversation_id: id.as_ref().to_owned(), seq: 0 };
        let answer = self.storage.ack(&opened.claims.sub, &opened.claims.dev, vec![position]).await?;
        if let Some(failed) = answer.errors.into_iter().next() {
            return Err(failed.error.unwrap_or_default().into());
        }
        Ok(answer.delivered.first().map_or(0, |p| p.seq))
    }

    async fn list_after(&self, user: &str, after: Vec<(String, u64)>) -> Result<Vec<ConversationMessages>, Error> {
        let _permit = self.reads.acquire().await;
        let positions = after.into_iter().map(|(conversation_id, seq)| Position { conversation_id, seq }).collect();
        self.storage.list_after(user, positions, READ).await
    }

    async fn pull(&self, user: &str, id: &Arc<str>, after: u64) -> Result<Pulled, Error> {
        let found = self.list_after(user, vec![(id.as_ref().to_owned(), after)]).await?;
        let found = found.into_iter().next().unwrap_or_default();
        match found.error {
            Some(error) => Err(error.into()),
            None => Ok(Pulled { items: items(&found.messages), has_more: found.has_more }),
        }
    }

    async fn catch_up(
        &self,
        opened: &Opened,
        cursor: Option<String>,
        known: Vec<(Arc<str>, u64)>,
    ) -> Result<CatchUpPage, Error> {
        let user = &opened.claims.sub;
        let cursors = known.iter().take(MAX_KNOWN);
        let request = ListBehindRequest {
            user_id: user.clone(),
            device_id: opened.claims.dev.clone(),
            cursors: cursors.map(|(id, seq)| Position { conversation_id: id.as_ref().to_owned(), seq: *seq }).collect(),
            limit: PAGE,
            cursor: cursor.unwrap_or_default(),
        };
        let known: HashMap<Arc<str>, u64> = known.into_iter().collect();
        let behind = {
            let _permit = self.reads.acquire().await;
            self.storage.list_behind(request).await?
        };
        let mut page =
            CatchUpPage { next: Some(behind.next_cursor).filter(|c| !c.is_empty()), ..CatchUpPage::default() };
        let after: Vec<_> = behind
            .behind
            .into_iter()
            .map(|b| {
                let seen = known.get(b.conversation_id.as_str()).copied().unwrap_or(b.delivered_seq);
                (b.conversation_id, seen, b.seq)
            })
            .filter(|(_, seen, newest)| seen < newest)
            .map(|(id, seen, _)| (id, seen))
            .collect();
        if after.is_empty() {
            return Ok(page);
        }
        fill(&mut page, self.list_after(user, after).await?)?;
        Ok(page)
    }

    async fn compare(&self, user: &str, cursors: Vec<(Arc<str>, u64)>) -> Result<CatchUpPage, Error> {
        let after = cursors.into_iter().map(|(id, seq)| (id.as_ref().to_owned(), seq)).collect();
        let mut page = CatchUpPage::default();
        fill(&mut page, self.list_after(user, after).await?)?;
        Ok(page)
    }
}

/// Puts what was found into a page. A conversation that the user may no longer see is none of theirs; another failure lets the whole
/// page be tried again.
fn fill(page: &mut CatchUpPage, found: Vec<ConversationMessages>) -> Result<(), Error> {
    for found in found {
        match found.error.map(Error::from) {
            Some(error) if matches!(error.code, Code::NotFound | Code::PermissionDenied) => continue,
            Some(error) => return Err(error),
            None => {}
        }
        page.items.extend(items(&found.messages));
        if found.has_more {
            page.more.push(found.conversation_id.into());
        }
    }
    Ok(())
}
