//! Blocks: written into the direct conversation's own row, where they take effect, and listed with the user who blocks.

use kith_contract::{events::Block, ids, json::I64};
use kith_proto::storage::v1::{DirectBlock, ListBlocksRequest, ListBlocksResponse, SetBlockRequest, Step, step};
use kith_rpc::error::Error;

use super::{Core, Plan, check, full, model::key, no_user, relations::pair};
use crate::{
    engine::{Field, Op},
    event::{self, Plain},
};

/// Blocked users of one user.
const MOST: u64 = 5_000;
const TOO_MANY: &str = "target_id: at most 5,000 blocked users";

impl Core {
    pub(crate) async fn set_block(&self, request: SetBlockRequest) -> Result<bool, Error> {
        let SetBlockRequest { user_id, target_id, blocked } = request;
        pair("user_id", &user_id, "target_id", &target_id)?;
        let id = ids::direct_conversation_id(&user_id, &target_id)?;
        let field = Field::new(key::blocks(&user_id), target_id.clone());
        let fields = [Field::new(key::profile(&user_id), "v"), field.clone()];
        let values = self.fields(self.partition(&user_id), &fields, Self::end()).await?;
        if values[0].is_none() {
            return Err(no_user());
        }
        if blocked && values[1].is_none() {
            if self.count(&user_id, key::blocks(&user_id), "").await? >= MOST {
                return Err(full(TOO_MANY));
            }
            // What is made up leaves no row.
            if self.missing(&[target_id.as_str()]).await?.is_some() {
                return Err(no_user());
            }
        }
        // First where it takes effect, then where it is listed: a retry repairs what is between.
        let direct = |blocked| {
            let block = DirectBlock { user_id: target_id.clone(), blocked };
            Step { id: id.clone(), step: Some(step::Step::DirectBlock(block)) }
        };
        let now = Self::now();
        let listed = self.update(self.partition(&user_id), vec![field.clone()], |values| {
            if values[0].is_some() == blocked {
                return Ok(Plan::nothing(false));
            }
            let op = if blocked { Op::Set(field.clone(), now.to_string().into()) } else { Op::Delete(field.clone()) };
            let block = Block { at: Some(I64(now)), target_id: (&target_id).into(), user_id: (&user_id).into() };
            let told = if blocked { Plain::BlockAdded(block) } else { Plain::BlockRemoved(block) };
            let ops = vec![op, Op::Emit(event::body(&told, now))];
            let room = Field::new(key::blocks(&user_id), "");
            Ok(if blocked { Plan::new(ops, true).within(room, MOST, TOO_MANY) } else { Plan::freeing(ops, true) })
        });
        self.other_side_first(direct(blocked), blocked.then(|| direct(false)), listed).await
    }

    pub(crate) async fn list_blocks(&self, request: ListBlocksRequest) -> Result<ListBlocksResponse, Error> {
        let ListBlocksRequest { user_id, limit, cursor } = request;
        check::user("user_id", &user_id)?;
        let limit = check::limit(limit, 200, 1_000)?;
        let (page, next_cursor) =
            self.listed("blocks", &user_id, key::blocks(&user_id), ("", ""), (limit, &cursor)).await?;
        Ok(ListBlocksResponse { user_ids: page.into_iter().map(|(id, _)| id).collect(), next_cursor })
    }
}
