//! Pages of conversations: history, and what lies behind positions. Each answer is bounded in bytes as [`crate::weight`] counts them, and so
//! is what is read for it: a page ends early and says that there is more.

use futures::future::join_all;
use kith_proto::{
    chat::v1::Message,
    storage::v1::{
        ConversationMessages, ListAfterRequest, ListAfterResponse, ListMessagesRequest, ListMessagesResponse,
    },
};
use kith_rpc::error::Error;
use prost::Message as _;

use super::{Core, check, model, no_conversation};
use crate::{
    engine::{History, Page, Window},
    weight,
};

/// Positions of one call.
const POSITIONS: usize = 100;

/// A page as its reader may see it.
struct Listed {
    messages: Vec<Message>,
    has_more: bool,
    seq: u64,
    /// Bytes have ended it before its limit.
    cut: bool,
}

impl Listed {
    fn bytes(&self) -> usize {
        self.messages.iter().map(Message::encoded_len).sum()
    }
}

impl Core {
    pub(super) async fn page(&self, id: &str, page: Page) -> Result<History, Error> {
        let found = self.engine().history(self.partition(id), id, page, Self::end()).await?;
        found.ok_or_else(no_conversation)
    }

    /// One page of a conversation, ascending, from what the user may see.
    pub(crate) async fn list_messages(&self, request: ListMessagesRequest) -> Result<ListMessagesResponse, Error> {
        let ListMessagesRequest { conversation_id, user_id, before_seq, after_seq, limit } = request;
        if before_seq > 0 && after_seq > 0 {
            return Err(Error::invalid("before_seq and after_seq: at most one of them"));
        }
        let window = match (before_seq, after_seq) {
            (0, 0) => Window::Newest,
            (0, after) => Window::After(after),
            (before, _) => Window::Before(before),
        };
        let page = Page::whole(window, check::limit(limit, 50, 200)?);
        let Listed { messages, has_more, seq, .. } = self.list_page(&conversation_id, &user_id, page).await?;
        Ok(ListMessagesResponse { messages, has_more, seq })
    }

    async fn list_page(&self, id: &str, user_id: &str, page: Page) -> Result<Listed, Error> {
        check::conversation(id)?;
        let (history, hidden) = if user_id.is_empty() {
            let history = self.page(id, page).await?;
            let floor = history.floor;
            (history, floor)
        } else {
            check::user("user_id", user_id)?;
            let (history, seen) = tokio::join!(self.page(id, page), self.seen(user_id, id));
            // First what the user may see: the page's own troubles tell that there is something.
            let hidden = seen?.hidden();
            (history?, hidden)
        };
        let (window, history) = match page.window {
            // The page began among messages that the user may not see.
            Window::After(after) if after < hidden => {
                let window = Window::After(hidden);
                (window, self.page(id, Page { window, ..page }).await?)
            }
            window => (window, history),
        };
        let History { seq, cut, .. } = history;
        let messages: Vec<Message> = history
            .messages
            .into_iter()
            .filter(|m| m.seq > hidden)
            .map(|m| model::message(id, m.seq, m.row, m.overlay.as_ref(), user_id))
            .collect::<Result<_, _>>()?;
        let has_more = match window {
            Window::After(after) => {
                messages.last().map_or(after.max(hidden), |m| m.seq) < seq && (cut || !messages.is_empty())
            }
            _ => messages.first().is_some_and(|m| m.seq.saturating_sub(1) > hidden),
        };
        Ok(Listed { messages, has_more, seq, cut })
    }

    /// What lies behind each position. All are read side by side, each within its share of the bytes; then what is left goes to those that
    /// had too little, one after the other.
    pub(crate) async fn list_after(&self, request: ListAfterRequest) -> Result<ListAfterResponse, Error> {
        let ListAfterRequest { user_id, after, limit, bytes } = request;
        check::count("after", after.len(), POSITIONS)?;
        let limit = check::limit(limit, 50, 200)?;
        let most = if bytes == 0 { weight::PAGE } else { weight::PAGE.min(bytes as usize) };
        let alone = after.len() == 1 && most == weight::PAGE;
        // A page like any other.
        let most = if alone { weight::GATHERED } else { most };
        let page = |seq, limit, bytes, first| Page { window: Window::After(seq), limit, bytes, first };
        let share = share(most, after.len());
        let read = after.iter().map(|p| self.list_page(&p.conversation_id, &user_id, page(p.seq, limit, share, alone)));
        let mut pages = join_all(read).await;
        let mut left = most.saturating_sub(pages.iter().flatten().map(Listed::bytes).sum());
        for (position, listed) in after.iter().zip(&mut pages) {
            let Ok(listed) = listed else { continue };
            if alone || !listed.cut || left <= weight::BESIDE {
                continue;
            }
            let last = listed.messages.last().map_or(position.seq, |m| m.seq);
            let rest = page(last, limit.saturating_sub(listed.messages.len() as u32), left, left == weight::PAGE);
            // Whatever goes wrong: there is more, which is said already.
            let Ok(more) = self.list_page(&position.conversation_id, &user_id, rest).await else { continue };
            left = left.saturating_sub(more.bytes());
            listed.messages.extend(more.messages);
            (listed.has_more, listed.seq) = (more.has_more, more.seq);
        }
        let told = |(position, page): (kith_proto::chat::v1::Position, Result<Listed, Error>)| {
            let conversation_id = position.conversation_id;
            match page {
                Ok(Listed { messages, has_more, seq, .. }) => {
                    ConversationMessages { conversation_id, messages, has_more, seq, error: None }
                }
                Err(error) => ConversationMessages { conversation_id, error: Some(error.into()), ..Default::default() },
            }
        };
        Ok(ListAfterResponse { conversations: after.into_iter().zip(pages).map(told).collect() })
    }
}

/// What each of so many may take. Of few sizes: equal reads of a hot conversation are shared.
fn share(bytes: usize, among: usize) -> usize {
    let share = bytes / among.max(1);
    1 << share.max(1).ilog2()
}
