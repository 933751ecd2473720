//! What connections want done outside: storage reads, sends, acknowledgements, typing. Each brings its answer back as an input.

use std::{collections::HashMap, sync::Arc};

use kith_clients::{
    auth::Claims,
    login::Authenticator,
    storage::{PAGE_BYTES, Storage},
};
use kith_contract::message;
use kith_proto::{
    chat::v1::Position,
    sessions::v1::SessionAckRequest,
    storage::v1::{Behind, ConversationMessages, ListBehindRequest},
};
use kith_rpc::{
    budget::{Budget, Held},
    error::Error,
};
use kith_send::{
    Doorway, Limiter,
    limit::{LateRefusals, TakenBytes},
};
use tonic::Code;

use crate::{
    inbound::items_within,
    links::Links,
    machine::{
        io::{CatchUpPage, Compared, Input, Job, Opened, Pulled},
        order::{Item, Need},
        sends::Send,
    },
    typing::Typists,
};

/// Logins and fresh tokens of a user: a second on average, and at once. All devices of a user may come back together.
const LOGINS: (u32, u32) = (1, 50);
/// Cursors and acknowledged positions of a user: a second on average, and at once. A login may bring a thousand.
const POSITIONS: (u32, u32) = (300, 5_000);
/// What a read of messages can come to, and one that brings positions alone. The budget bounds the reads of all connections, which after a
/// change of owners all read, and those of one user.
const MESSAGES: usize = PAGE_BYTES;
const POSITIONS_ALONE: usize = 512 << 10;
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
    pub(crate) typing: Typists,
    pub(crate) sends: Limiter,
    /// Tokens that a device may have verified, and those of a user of which that held.
    attempts: Limiter,
    logins: Limiter,
    /// Cursors and positions that a user may name: what they cost is counted one by one.
    positions: Limiter,
    /// Bytes of reads, at once and lately.
    budget: Budget,
    taken: TakenBytes,
    refusals: LateRefusals,
}

/// What a job brings back, and what is held for it until that has been written to the client.
pub(crate) struct Answer {
    pub(crate) input: Input,
    pub(crate) held: Option<Held>,
}

impl Answer {
    fn of(input: Input) -> Self {
        Self { input, held: None }
    }
}

impl Worker {
    pub(crate) fn new(
        storage: Storage,
        authenticator: Authenticator,
        links: Links,
        typing: Typists,
        sends: Limiter,
        doorway: Doorway,
    ) -> Self {
        Self {
            storage,
            doorway,
            authenticator,
            links,
            typing,
            sends,
            attempts: Limiter::with_burst(LOGINS.0, LOGINS.1),
            logins: Limiter::with_burst(LOGINS.0, LOGINS.1),
            positions: Limiter::with_burst(POSITIONS.0, POSITIONS.1),
            budget: Budget::new("kith_gateway_over_budget_total"),
            taken: TakenBytes::default(),
            refusals: LateRefusals::default(),
        }
    }

    /// Does a job of the session `opened`, if it is one that needs a session. All but sends are boxed: they are rare, and larger.
    pub(crate) async fn run(&self, job: Job, opened: Option<Opened>) -> Option<Answer> {
        if let Job::Authenticate(token) = &job {
            return Some(Answer::of(Input::Authenticated(Box::pin(self.authenticate(token)).await)));
        }
        let opened = opened?;
        let user = &opened.claims.sub;
        match job {
            Job::Authenticate(_) => None,
            Job::Recheck(claims) => {
                let result = Box::pin(self.authenticator.check_revoked_now(&claims)).await;
                Some(Answer::of(Input::Rechecked(claims, result)))
            }
            Job::Send { key, send } => Some(Answer::of(self.send(user, key, send).await)),
            Job::Ack(acks) => {
                if let Err(error) = self.take_positions(user, acks.len()) {
                    return Some(Answer::of(Input::Exhausted(error)));
                }
                Box::pin(self.ack(&opened, acks)).await;
                None
            }
            Job::Typing(conversation_id) => {
                Box::pin(self.typing.tell(user, conversation_id)).await;
                None
            }
            Job::Read(Need::Base(id)) => {
                let held = self.budget.wait(user, POSITIONS_ALONE).await;
                let base = Box::pin(self.base(&opened, &id)).await;
                Some(self.answer(user, Input::Base(id, base), held, 0).await)
            }
            Job::Read(Need::Pull { conversation_id, after }) => {
                let held = self.budget.wait(user, MESSAGES).await;
                let pulled = Box::pin(self.pull(user, &conversation_id, after)).await;
                let bytes = pulled.as_ref().map_or(0, |p| weight(&p.items));
                Some(self.answer(user, Input::Pulled(conversation_id, pulled), held, bytes).await)
            }
            Job::CatchUp { cursor, known } => {
                let held = self.budget.wait(user, MESSAGES).await;
                let page = Box::pin(self.catch_up(&opened, cursor, known)).await;
                let bytes = page.as_ref().map_or(0, |p| weight(&p.items));
                Some(self.answer(user, Input::CaughtUp(page), held, bytes).await)
            }
            Job::Compare(cursors) => {
                let held = self.budget.wait(user, MESSAGES).await;
                let compared = Box::pin(self.compare(user, cursors)).await;
                let of = |(_, compared): &(Arc<str>, Compared)| match compared {
                    Compared::Found { items, .. } => weight(items),
                    Compared::Invisible | Compared::Failed => 0,
                };
                let bytes = compared.as_ref().map_or(0, |all| all.iter().map(of).sum());
                Some(self.answer(user, Input::Compared(compared), held, bytes).await)
            }
        }
    }

    /// Read from storage: messages that take these bytes. Who has read too many lately has them late.
    async fn answer(&self, user: &str, input: Input, mut held: Held, bytes: usize) -> Answer {
        held.made(bytes);
        if bytes > 0
            && let Err(error) = self.taken.take(user, bytes).await
        {
            // It has been read, and waited for as long as an answer waits: reading it once more would cost the most.
            tracing::debug!(%error, "a read is handed over late");
        }
        Answer { input, held: Some(held) }
    }

    /// The claims of a token, as far as its user may log in as often.
    async fn authenticate(&self, token: &str) -> Result<Arc<Claims>, Error> {
        let claims = self.authenticator.verify(token).await?;
        let too_many = |wait| Error::exhausted("too many logins of this user: reconnect with back-off", wait);
        // Before storage is asked. Each token for itself: whoever has a revoked one keeps nobody out who has another.
        let mut taken = self.attempts.check(&format!("{}:{}:{}", claims.sub, claims.dev, claims.issued_at_ms()));
        if taken.is_ok() {
            self.authenticator.check_revoked_now(&claims).await?;
            taken = self.logins.check(&claims.sub);
        }
        if let Err(wait) = taken {
            self.refusals.wait().await;
            return Err(too_many(wait));
        }
        Ok(claims)
    }

    fn take_positions(&self, user: &str, count: usize) -> Result<(), Error> {
        self.positions
            .check_n(user, count)
            .map_err(|wait| Error::exhausted("too many cursors or acknowledgements of this user: slow down", wait))
    }

    async fn send(&self, user: &str, key: String, send: Send) -> Input {
        let result = match self.sends.check(user) {
            Ok(()) => self.doorway.send(send.draft).await,
            Err(wait) => Err(Error::exhausted("too many messages of this user: slow down", wait)),
        };
        Input::Sent { key, id: send.id, result }
    }

    /// Through `sessions`, which coalesces; straight to storage when there is no way to it.
    async fn ack(&self, opened: &Opened, acks: Vec<message::Position>) {
        let acks: Vec<_> = acks
            .into_iter()
            .map(|message::Position { conversation_id, seq }| Position { conversation_id, seq })
            .collect();
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
        let position = Position { conversation_id: id.as_ref().to_owned(), seq: 0 };
        let answer = self.storage.ack(&opened.claims.sub, &opened.claims.dev, vec![position]).await?;
        if let Some(failed) = answer.errors.into_iter().next() {
            return Err(failed.error.unwrap_or_default().into());
        }
        Ok(answer.delivered.first().map_or(0, |p| p.seq))
    }

    async fn list_after(&self, user: &str, after: Vec<(String, u64)>) -> Result<Vec<ConversationMessages>, Error> {
        let positions = after.into_iter().map(|(conversation_id, seq)| Position { conversation_id, seq }).collect();
        self.storage.list_after(user, positions, READ).await
    }

    async fn pull(&self, user: &str, id: &Arc<str>, after: u64) -> Result<Pulled, Error> {
        let found = self.list_after(user, vec![(id.as_ref().to_owned(), after)]).await?;
        let found = found.into_iter().next().unwrap_or_default();
        match found.error {
            Some(error) => Err(error.into()),
            None => {
                let mut room = MESSAGES;
                let (items, cut) = items_within(&found.messages, &mut room);
                Ok(Pulled { items, has_more: found.has_more || cut })
            }
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
        let behind = self.storage.list_behind(request).await?;
        let mut page =
            CatchUpPage { next: Some(behind.next_cursor).filter(|c| !c.is_empty()), ..CatchUpPage::default() };
        let (unread, behind): (Vec<_>, Vec<_>) = behind.behind.into_iter().partition(|b| b.error.is_some());
        for Behind { conversation_id, error, .. } in unread {
            failed(&conversation_id, &error.unwrap_or_default().into());
            page.more.push(conversation_id.into());
        }
        let after: Vec<_> = behind
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
        fill(&mut page, self.list_after(user, after).await?);
        Ok(page)
    }

    /// What is behind the client's cursors; a client that names too many waits.
    async fn compare(&self, user: &str, cursors: Vec<(Arc<str>, u64)>) -> Result<Vec<(Arc<str>, Compared)>, Error> {
        self.take_positions(user, cursors.len())?;
        let after = cursors.iter().map(|(id, seq)| (id.as_ref().to_owned(), *seq)).collect();
        let found = self.list_after(user, after).await?;
        let mut room = MESSAGES;
        Ok(cursors.into_iter().zip(found).map(|((id, _), found)| (id, compared(found, &mut room))).collect())
    }
}

fn weight(items: &[Item]) -> usize {
    items.iter().map(|item| item.json.len()).sum()
}

fn compared(found: ConversationMessages, room: &mut usize) -> Compared {
    match found.error.map(Error::from) {
        None => {
            let (items, cut) = items_within(&found.messages, room);
            Compared::Found { items, has_more: found.has_more || cut, end: found.seq }
        }
        Some(error) if is_hidden(&error) => Compared::Invisible,
        Some(error) => {
            failed(&found.conversation_id, &error);
            Compared::Failed
        }
    }
}

/// Puts what was found into a page. A conversation that the user may no longer see is none of theirs; of one that cannot be read the
/// client is told that there is more, and the others go on.
fn fill(page: &mut CatchUpPage, found: Vec<ConversationMessages>) {
    let mut room = MESSAGES;
    for found in found {
        match found.error.map(Error::from) {
            Some(error) if is_hidden(&error) => {}
            Some(error) => {
                failed(&found.conversation_id, &error);
                page.more.push(found.conversation_id.into());
            }
            None => {
                let (items, cut) = items_within(&found.messages, &mut room);
                page.items.extend(items);
                if found.has_more || cut {
                    page.more.push(found.conversation_id.into());
                }
            }
        }
    }
}

fn is_hidden(error: &Error) -> bool {
    matches!(error.code, Code::NotFound | Code::PermissionDenied)
}

fn failed(conversation_id: &str, error: &Error) {
    metrics::counter!("kith_gateway_catch_up_conversations_failed_total").increment(1);
    tracing::warn!(conversation = conversation_id, %error, "a conversation could not be read in a catch-up: the client is told");
}
