//! Lists, sets and versions over the engine in memory.

mod cursors;
mod gone;
mod lists;
mod sets;
mod versions;
mod weights;
mod whole;

use std::{collections::BTreeMap, sync::Arc};

use kith_contract::ids;
use kith_kit::config::Limits;
use kith_proto::storage::v1::{
    Conversation, ListConversationsRequest, OpenDirectRequest, UpsertUsersRequest, UserUpdate,
};
use kith_rpc::error::Error;
use tonic::Code;

use super::{Core, model::key};
use crate::engine::memory::{Data, MemoryEngine};

const PARTITIONS: u32 = 8;

/// Storage over an engine that a test may look into.
struct World {
    engine: Arc<MemoryEngine>,
    core: Core,
}

impl World {
    /// With these users.
    async fn with(users: &[&str]) -> Self {
        let engine = Arc::new(MemoryEngine::default());
        let core = Core::new(engine.clone(), PARTITIONS, Limits::default(), None);
        let world = Self { engine, core };
        for users in users.chunks(100) {
            let update = |id: &&str| UserUpdate { user_id: (*id).to_owned(), ..UserUpdate::default() };
            let users = users.iter().map(update).collect();
            let made = world.core.upsert_users(UpsertUsersRequest { users }).await.unwrap();
            assert!(made.results.iter().all(|r| r.created));
        }
        world
    }

    fn by_hand<T>(&self, entity: &str, change: impl FnOnce(&mut Data) -> T) -> T {
        self.engine.by_hand(ids::partition_of(entity, PARTITIONS), change)
    }

    /// All that is stored; what is empty is as good as not there.
    fn state(&self) -> BTreeMap<u32, Data> {
        let mut state = self.engine.copy();
        for data in state.values_mut() {
            data.hashes.retain(|_, fields| !fields.is_empty());
            data.scores.retain(|_, members| !members.is_empty());
        }
        state.retain(|_, data| *data != Data::default());
        state
    }

    /// A direct conversation of two users that was active at a time, and is listed with that hint.
    async fn talk(&self, a: &str, b: &str, activity: i64, hint: i64) -> String {
        let request = OpenDirectRequest { user_a: a.to_owned(), user_b: b.to_owned() };
        let id = self.core.open_direct(request).await.unwrap().conversation_id;
        self.activity(a, &id, activity, hint);
        id
    }

    /// Puts a conversation's activity and the hint in a user's list right.
    fn activity(&self, user: &str, id: &str, activity: i64, hint: i64) {
        self.by_hand(id, |data| {
            let fields = data.hashes.get_mut(&key::conversation(id)).unwrap();
            fields.insert("a".to_owned(), activity.to_string().into());
            fields.insert("s".to_owned(), "1".into());
        });
        self.by_hand(user, |data| data.scores.get_mut(&key::list(user)).unwrap().insert(id.to_owned(), hint));
    }

    async fn page(&self, user: &str, limit: u32, cursor: &str) -> (Vec<Conversation>, String) {
        let request = ListConversationsRequest { user_id: user.to_owned(), limit, cursor: cursor.to_owned() };
        let page = self.core.list_conversations(request).await.unwrap();
        assert!(page.conversations.len() <= limit as usize);
        (page.conversations, page.next_cursor)
    }

    /// All pages of a list.
    async fn listed(&self, user: &str, limit: u32) -> Vec<Conversation> {
        self.listed_by(user, &[limit]).await
    }

    /// All pages of a list; their limits in turn.
    async fn listed_by(&self, user: &str, limits: &[u32]) -> Vec<Conversation> {
        let (mut all, mut cursor) = self.page(user, limits[0], "").await;
        for limit in limits.iter().cycle().skip(1) {
            if cursor.is_empty() {
                break;
            }
            let (page, next) = self.page(user, *limit, &cursor).await;
            all.extend(page);
            cursor = next;
        }
        all
    }
}

fn ids_of(conversations: &[Conversation]) -> Vec<&str> {
    conversations.iter().map(|c| c.conversation_id.as_str()).collect()
}

fn is<T: std::fmt::Debug>(outcome: Result<T, Error>, code: Code, about: &str) {
    let error = outcome.unwrap_err();
    assert!(error.code == code && error.detail.contains(about), "{error}");
}
