//! Pages of a hash in the order of its fields' names, by the index that stands beside it.

use tokio::time::Instant;

use super::{
    ValkeyEngine, wire,
    wire::{Call, Emits},
};
use crate::engine::{EngineError, FieldPage, Range};

/// Attempts at reading a page of a hash whose index was not whole.
const INDEXINGS: u32 = 3;

impl ValkeyEngine {
    /// One page; the index is made first where it is not whole.
    pub(super) async fn indexed_page(
        &self,
        partition: u32,
        range: &Range,
        end: Instant,
    ) -> Result<FieldPage, EngineError> {
        for _ in 0..INDEXINGS {
            let values = self.read(partition, "k1_fields", |call| wire::fields(call, range), end).await?;
            if let Some(page) = wire::named(&range.key, wire::read_fields(values))? {
                return Ok(page);
            }
            // A storage service of the version before wrote fields without it.
            let build = |call: Call| (call.arg(&range.key), Emits::Nothing);
            self.write(partition, "k1_index", build, end).await?;
        }
        Err(EngineError::Unavailable("the list changes too fast: try again".into()))
    }
}
