//! Pages of a conversation's messages.

use tokio::time::Instant;

use super::{ValkeyEngine, wire};
use crate::engine::{EngineError, History, Page, Window};

impl ValkeyEngine {
    /// A page without what is in doubt.
    pub(super) async fn page(
        &self,
        partition: u32,
        conversation_id: &str,
        page: Page,
        end: Instant,
    ) -> Result<Option<History>, EngineError> {
        let (key, window) = (format!("m:{conversation_id}"), page.window);
        let build = |call| wire::history(call, conversation_id, page);
        let (values, doubt) = self.read_in_doubt(partition, "k1_history", build, end).await?;
        let mut history = wire::named(&key, wire::read_history(window, values))?;
        let Some(first) = doubt.and_then(|d| d.first(conversation_id)) else { return Ok(history) };
        let shorter = match window {
            Window::Newest => Some(Window::Before(first)),
            Window::Before(before) if before > first => Some(Window::Before(first)),
            Window::Before(_) | Window::After(_) => None,
        };
        if let Some(window) = shorter {
            let build = |call| wire::history(call, conversation_id, Page { window, ..page });
            let values = self.read_in_doubt(partition, "k1_history", build, end).await?.0;
            history = wire::named(&key, wire::read_history(window, values))?;
        }
        if let Some(history) = &mut history {
            history.seq = history.seq.min(first.saturating_sub(1));
            history.messages.retain(|m| m.seq < first);
        }
        Ok(history)
    }
}
