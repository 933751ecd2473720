//! Carries the model's calls out on the real layer and reduces its answers to what the model tells.

use std::collections::{BTreeMap, HashMap};

use kith_contract::{events::Kind, ids};
use kith_proto::{
    chat::v1::{ConversationKind, Draft, MessageType, Position},
    storage::v1::{
        AckRequest, AddMembersRequest, AppendRequest, ClearRequest, Conversation, CreateConversationRequest,
        EditRequest, GetConversationsRequest, ListConversationsRequest, ListMessagesRequest, MarkReadRequest,
        OpenDirectRequest, ReactRequest, RecallRequest, RemoveMembersRequest, SetBlockRequest, UpsertUsersRequest,
        UserUpdate,
    },
};
use kith_rpc::error::Error;
use parking_lot::Mutex;
use proptest::test_runner::TestCaseError;
use tonic::Code;
use ulid::Ulid;

use super::spec::{Act, GROUP, HeadView, PAIRS, Part, Row, Seen, USERS};
use crate::{core::Core, engine::memory::MemoryEngine, event};

const DEVICE: &str = "d1";
const EMOJI: [&str; 2] = ["👍", "🎉"];

/// Calls of users of its own.
pub(super) struct Caller {
    core: Core,
    users: Vec<String>,
    talks: [String; 3],
    /// Every message id that was told, by place.
    told: Mutex<HashMap<(String, u64), (String, i64)>>,
}

fn content(text: u8) -> bytes::Bytes {
    format!(r#"{{"text":"{text}"}}"#).into()
}

fn refusal(error: &Error) -> Seen {
    match error.code {
        Code::Unavailable | Code::DeadlineExceeded => Seen::Unknown,
        _ => Seen::Refused(
            format!("{} {}", error.code_name(), error.reason.as_deref().unwrap_or_default()).trim().to_owned(),
        ),
    }
}

impl Caller {
    /// Makes the users, named with `prefix`, and the group.
    pub(super) async fn new(core: Core, prefix: &str) -> Self {
        let users: Vec<String> = (0..USERS).map(|n| format!("{prefix}{n}")).collect();
        let update = |id: &String| UserUpdate { user_id: id.clone(), ..UserUpdate::default() };
        let made = core.upsert_users(UpsertUsersRequest { users: users.iter().map(update).collect() }).await.unwrap();
        assert!(made.results.iter().all(|r| r.error.is_none()), "{made:?}");
        let pair =
            |(a, b): (u8, u8)| ids::direct_conversation_id(&users[usize::from(a)], &users[usize::from(b)]).unwrap();
        let group = format!("g:{}", Ulid::generate());
        let create = CreateConversationRequest {
            conversation_id: group.clone(),
            kind: ConversationKind::Group as i32,
            owner_id: users[0].clone(),
            member_ids: vec![users[1].clone()],
            ..CreateConversationRequest::default()
        };
        core.create_conversation(create).await.unwrap();
        let talks = [pair(PAIRS[0]), pair(PAIRS[1]), group];
        Self { core, users, talks, told: Mutex::default() }
    }

    fn user(&self, user: u8) -> String {
        self.users[usize::from(user)].clone()
    }

    fn talk(&self, talk: u8) -> String {
        self.talks[usize::from(talk)].clone()
    }

    fn number(&self, user: &str) -> u8 {
        self.users.iter().position(|u| u == user).unwrap() as u8
    }

    /// Makes a call.
    pub(super) async fn call(&self, act: &Act) -> Seen {
        self.try_call(act).await.unwrap_or_else(|error| refusal(&error))
    }

    async fn try_call(&self, act: &Act) -> Result<Seen, Error> {
        match *act {
            Act::Append { talk, by, id, text } => self.append(talk, by, id, text, Vec::new()).await,
            Act::First { talk, by, id, text } => {
                let pair = PAIRS[usize::from(talk)];
                let other = if pair.0 == by { pair.1 } else { pair.0 };
                let stored = self.append(talk, by, id, text, vec![self.user(other)]).await;
                assert!(
                    !stored.as_ref().is_err_and(|e| e.code == Code::NotFound),
                    "a first message opens its conversation: {stored:?}"
                );
                stored
            }
            Act::History { talk, by, part, limit } => self.history(talk, by, part, limit).await,
            Act::Head { talk, by } => self.head(talk, by).await,
            Act::List { by } => self.list(by).await,
            Act::Recall { .. } | Act::Edit { .. } | Act::React { .. } => self.change(act).await,
            Act::Read { .. } | Act::Ack { .. } | Act::Clear { .. } => self.move_cursor(act).await,
            Act::Open { .. } | Act::Join { .. } | Act::Leave { .. } | Act::Block { .. } => self.relate(act).await,
        }
    }

    /// What a place holds never changes its id or time.
    fn tell(&self, talk: u8, seq: u64, message_id: String, sent_at: i64) {
        let told = (message_id, sent_at);
        let before = self.told.lock().insert((self.talk(talk), seq), told.clone());
        assert!(before.is_none_or(|b| b == told), "seq {seq} has had another message id");
    }

    async fn append(&self, talk: u8, by: u8, id: u8, text: u8, peers: Vec<String>) -> Result<Seen, Error> {
        let draft = Draft {
            client_msg_id: format!("c{id}"),
            sender_id: self.user(by),
            r#type: MessageType::Text as i32,
            content: content(text),
            ..Draft::default()
        };
        let request = AppendRequest { conversation_id: self.talk(talk), draft: Some(draft), privileged: false, peers };
        let receipt = self.core.append(request).await?;
        self.tell(talk, receipt.seq, receipt.message_id, receipt.sent_at);
        Ok(Seen::Stored { seq: receipt.seq, duplicate: receipt.duplicate })
    }

    async fn history(&self, talk: u8, by: Option<u8>, part: Part, limit: u8) -> Result<Seen, Error> {
        let (before_seq, after_seq) = match part {
            Part::Newest => (0, 0),
            Part::Before(seq) => (u64::from(seq), 0),
            Part::After(seq) => (0, u64::from(seq)),
        };
        let request = ListMessagesRequest {
            conversation_id: self.talk(talk),
            user_id: by.map(|by| self.user(by)).unwrap_or_default(),
            before_seq,
            after_seq,
            limit: u32::from(limit),
        };
        let page = self.core.list_messages(request).await?;
        let rows = page.messages.into_iter().map(|m| {
            self.tell(talk, m.seq, m.message_id, m.sent_at);
            let text = serde_json::from_slice::<serde_json::Value>(&m.content).ok();
            let emoji = |e: &str| EMOJI.iter().position(|known| *known == e).unwrap() as u8;
            Row {
                seq: m.seq,
                by: self.number(&m.sender_id),
                id: m.client_msg_id[1..].parse().unwrap(),
                text: text.map(|t| t["text"].as_str().unwrap().parse().unwrap()),
                edited: m.edited_at != 0,
                reactions: m
                    .reactions
                    .iter()
                    .map(|r| (emoji(&r.emoji), r.user_ids.iter().map(|u| self.number(u)).collect()))
                    .collect(),
            }
        });
        Ok(Seen::Page { seq: page.seq, rows: rows.collect(), has_more: page.has_more })
    }

    async fn change(&self, act: &Act) -> Result<Seen, Error> {
        Ok(match *act {
            Act::Recall { talk, seq, by } => {
                let request = RecallRequest {
                    conversation_id: self.talk(talk),
                    seq: seq.into(),
                    user_id: self.user(by),
                    limit_ms: 0,
                    privileged: false,
                };
                Seen::Changed(self.core.recall(request).await?.changed)
            }
            Act::Edit { talk, seq, by, text } => {
                let request = EditRequest {
                    conversation_id: self.talk(talk),
                    seq: seq.into(),
                    user_id: self.user(by),
                    content: content(text),
                    limit_ms: 0,
                };
                self.core.edit(request).await?;
                Seen::Done
            }
            Act::React { talk, seq, by, emoji, add } => {
                let request = ReactRequest {
                    conversation_id: self.talk(talk),
                    seq: seq.into(),
                    user_id: self.user(by),
                    emoji: EMOJI[usize::from(emoji)].to_owned(),
                    add,
                };
                Seen::Changed(self.core.react(request).await?.changed)
            }
            _ => unreachable!("{act:?}"),
        })
    }

    async fn move_cursor(&self, act: &Act) -> Result<Seen, Error> {
        Ok(match *act {
            Act::Read { talk, by, seq } => {
                let request =
                    MarkReadRequest { user_id: self.user(by), conversation_id: self.talk(talk), seq: seq.into() };
                Seen::At(self.core.mark_read(request).await?.read_seq)
            }
            Act::Ack { talk, by, seq } => {
                let ack = Position { conversation_id: self.talk(talk), seq: seq.into() };
                let request = AckRequest { user_id: self.user(by), device_id: DEVICE.to_owned(), acks: vec![ack] };
                let mut answer = self.core.ack(request).await?;
                match (answer.delivered.pop(), answer.errors.pop()) {
                    (Some(position), None) => Seen::At(position.seq),
                    (_, error) => return Err(error.unwrap().error.unwrap().into()),
                }
            }
            Act::Clear { talk, by } => {
                let request = ClearRequest { user_id: self.user(by), conversation_id: self.talk(talk) };
                Seen::At(self.core.clear(request).await?.cleared_seq)
            }
            _ => unreachable!("{act:?}"),
        })
    }

    async fn relate(&self, act: &Act) -> Result<Seen, Error> {
        let (conversation_id, actor_id) = (self.talk(GROUP), self.user(0));
        Ok(Seen::Changed(match *act {
            Act::Open { talk } => {
                let (a, b) = PAIRS[usize::from(talk)];
                let request = OpenDirectRequest { user_a: self.user(a), user_b: self.user(b) };
                self.core.open_direct(request).await?.created
            }
            Act::Join { user } => {
                let user_ids = vec![self.user(user)];
                let request = AddMembersRequest { conversation_id, user_ids, role: 0, actor_id };
                !self.core.add_members(request).await?.added.is_empty()
            }
            Act::Leave { user } => {
                let request = RemoveMembersRequest { conversation_id, user_ids: vec![self.user(user)], actor_id };
                !self.core.remove_members(request).await?.removed.is_empty()
            }
            Act::Block { talk, turned, blocked } => {
                let (a, b) = PAIRS[usize::from(talk)];
                let (by, target) = if turned { (b, a) } else { (a, b) };
                let request = SetBlockRequest { user_id: self.user(by), target_id: self.user(target), blocked };
                self.core.set_block(request).await?
            }
            _ => unreachable!("{act:?}"),
        }))
    }

    async fn head(&self, talk: u8, by: u8) -> Result<Seen, Error> {
        let request = GetConversationsRequest {
            user_id: self.user(by),
            conversation_ids: vec![self.talk(talk)],
            with_last_message: true,
        };
        let view = |c: Conversation| HeadView {
            seq: c.seq,
            read: c.read_seq,
            unread: c.unread,
            members: c.member_count.into(),
            last: c.last_message.map(|m| m.seq),
        };
        Ok(Seen::Head(self.core.get_conversations(request).await?.pop().map(view)))
    }

    async fn list(&self, by: u8) -> Result<Seen, Error> {
        let request = ListConversationsRequest { user_id: self.user(by), limit: 0, cursor: String::new() };
        let listed = self.core.list_conversations(request).await?.conversations;
        let place = |id: &str| self.talks.iter().position(|t| t == id).unwrap() as u8;
        let mut listed: Vec<_> = listed.iter().map(|c| (place(&c.conversation_id), c.seq, c.unread)).collect();
        listed.sort_unstable();
        Ok(Seen::List(listed))
    }
}

/// The event log tells the same story as the store: versions without a hole, every message once and in order, every recall.
pub(super) async fn replays(engine: &MemoryEngine, caller: &Caller) -> Result<(), TestCaseError> {
    let mut vers: BTreeMap<u32, u64> = BTreeMap::new();
    let mut created: BTreeMap<String, u64> = BTreeMap::new();
    let mut recalled: BTreeMap<(String, u64), u32> = BTreeMap::new();
    for (partition, ver, body, row) in engine.events() {
        let last = vers.insert(partition, ver).unwrap_or(0);
        proptest::prop_assert_eq!(ver, last + 1, "partition {} has a hole", partition);
        let told = event::read(&body, row).map_err(TestCaseError::fail)?;
        let data: serde_json::Value = serde_json::from_slice(&told.data).unwrap();
        let seq = data["seq"].as_str().and_then(|s| s.parse::<u64>().ok());
        match Kind::of_name(&told.kind) {
            Some(Kind::MessageCreated) => {
                let last = created.insert(told.key.clone(), seq.unwrap()).unwrap_or(0);
                proptest::prop_assert_eq!(seq.unwrap(), last + 1);
            }
            Some(Kind::MessageRecalled) => *recalled.entry((told.key.clone(), seq.unwrap())).or_default() += 1,
            _ => {}
        }
    }
    for talk in &caller.talks {
        let request = ListMessagesRequest { conversation_id: talk.clone(), limit: 200, ..Default::default() };
        let Ok(page) = caller.core.list_messages(request).await else { continue };
        proptest::prop_assert_eq!(created.get(talk).copied().unwrap_or(0), page.seq);
        for message in page.messages {
            let told = recalled.get(&(talk.clone(), message.seq)).copied().unwrap_or(0);
            proptest::prop_assert_eq!(told, u32::from(message.recalled));
        }
    }
    Ok(())
}
