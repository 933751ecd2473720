//! Random calls of several callers at once on one group, against a plain model; and behind each round, what always holds of a group.
//!
//! Lists hold the group for its members and for nobody else, rows and join order name the same users, there is one owner, and who follows the
//! changes by version has what the whole listing says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use kith_contract::ids;
use kith_kit::config::Limits;
use kith_proto::{
    chat::v1::ConversationKind,
    storage::v1::{
        AddMembersRequest, AppendRequest, CreateConversationRequest, DissolveRequest, ListMembersRequest, Member,
        RemoveMembersRequest, Role, UpdateConversationRequest, UpdateMemberRequest, UpsertUsersRequest, UserUpdate,
    },
};
use kith_rpc::error::Error;
use proptest::{prelude::*, test_runner::TestCaseError};
use tokio::time::Instant;
use tonic::Code;
use ulid::Ulid;

use super::{Model, PARTITIONS, Real, explain, rules::draft, runner};
use crate::{
    core::{Core, model::key},
    engine::{Engine, Got, Want, memory::MemoryEngine},
};

const USERS: u8 = 4;
/// Far away, and the last moment that there is.
const MUTED: i64 = i64::MAX;

#[derive(Debug, Clone)]
enum Act {
    Create { owner: u8, member: u8 },
    Add { users: [u8; 2], admin: bool },
    Remove { users: [u8; 2] },
    Update { user: u8, role: Option<u8>, muted: Option<bool> },
    Transfer { to: u8 },
    Dissolve,
    Append { by: u8 },
    Roster,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Unknown,
    /// Members go one after the other, in the background.
    Any,
    Refused(String),
    Done,
    Changed(bool),
    Users(BTreeSet<u8>),
    Is(u8, bool),
    At(u64),
    Members(BTreeMap<u8, View>),
}

/// A member: role, whether muted, first seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct View(u8, bool, u64);

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    made: bool,
    dissolved: bool,
    seq: u64,
    members: BTreeMap<u8, View>,
}

fn refused(what: &str) -> Seen {
    Seen::Refused(what.to_owned())
}

impl Group {
    fn add(&mut self, users: &[u8], role: Role) -> BTreeSet<u8> {
        let fresh: BTreeSet<u8> = users.iter().filter(|user| !self.members.contains_key(user)).copied().collect();
        let view = View(role as u8, false, self.seq + 1);
        self.members.extend(fresh.iter().map(|user| (*user, view)));
        fresh
    }

    fn owns(&self, user: u8) -> bool {
        self.members.get(&user).is_some_and(|m| m.0 == Role::Owner as u8)
    }

    fn update(&mut self, user: u8, role: Option<u8>, muted: Option<bool>) -> Seen {
        let owns = self.owns(user);
        let Some(member) = self.members.get_mut(&user) else { return refused("NOT_FOUND") };
        match role {
            Some(3) if !owns => return refused("INVALID_ARGUMENT"),
            Some(1 | 2) if owns => return refused("FAILED_PRECONDITION"),
            _ => {}
        }
        member.0 = role.unwrap_or(member.0);
        member.1 = muted.unwrap_or(member.1);
        Seen::Is(member.0, member.1)
    }
}

impl Model for Group {
    type Act = Act;
    type Seen = Seen;
    const UNKNOWN: Seen = Seen::Unknown;

    fn fits(answer: &Seen, seen: &Seen) -> bool {
        *answer == Seen::Any || answer == seen
    }

    fn apply(&mut self, act: &Act) -> Seen {
        match *act {
            Act::Create { owner, member } if !self.made => {
                self.made = true;
                self.members.insert(owner, View(Role::Owner as u8, false, 1));
                self.add(&[member], Role::Member);
                Seen::Changed(true)
            }
            _ if !self.made => refused("NOT_FOUND"),
            Act::Dissolve => {
                self.dissolved = true;
                Seen::Done
            }
            Act::Remove { .. } | Act::Roster if self.dissolved => Seen::Any,
            // Whoever asks for nobody is not told how the group stands.
            Act::Create { owner, member } if self.dissolved && owner == member => Seen::Changed(false),
            _ if self.dissolved => refused("NOT_FOUND"),
            Act::Create { owner, member } => {
                if owner != member {
                    self.add(&[member], Role::Member);
                }
                Seen::Changed(false)
            }
            Act::Add { users, admin } => Seen::Users(self.add(&users, if admin { Role::Admin } else { Role::Member })),
            Act::Remove { users } => {
                if users.iter().any(|user| self.owns(*user)) {
                    return refused("FAILED_PRECONDITION");
                }
                Seen::Users(users.iter().filter(|user| self.members.remove(user).is_some()).copied().collect())
            }
            Act::Update { user, role, muted } => self.update(user, role, muted),
            Act::Transfer { to } => {
                if !self.members.contains_key(&to) {
                    return refused("INVALID_ARGUMENT");
                }
                if !self.owns(to) {
                    for (user, member) in &mut self.members {
                        let before = if member.0 == Role::Owner as u8 { Role::Admin as u8 } else { member.0 };
                        member.0 = if *user == to { Role::Owner as u8 } else { before };
                    }
                }
                Seen::Done
            }
            Act::Append { by } => match self.members.get(&by) {
                None => refused("NOT_FOUND"),
                Some(View(_, true, _)) => refused("PERMISSION_DENIED"),
                Some(_) => {
                    self.seq += 1;
                    Seen::At(self.seq)
                }
            },
            Act::Roster => Seen::Members(self.members.clone()),
        }
    }
}

/// Calls at once, and how the engine in memory lets others in between.
type Rounds = Vec<(Vec<Act>, Vec<u8>)>;

fn rounds() -> impl Strategy<Value = Rounds> {
    let user = 0..USERS;
    let act = prop_oneof![
        2 => (user.clone(), user.clone()).prop_map(|(owner, member)| Act::Create { owner, member }),
        6 => ([user.clone(), user.clone()], any::<bool>()).prop_map(|(users, admin)| Act::Add { users, admin }),
        6 => [user.clone(), user.clone()].prop_map(|users| Act::Remove { users }),
        3 => (user.clone(), proptest::option::of(1..4_u8), proptest::option::of(any::<bool>()))
            .prop_map(|(user, role, muted)| Act::Update { user, role, muted }),
        3 => user.clone().prop_map(|to| Act::Transfer { to }),
        1 => Just(Act::Dissolve),
        3 => user.clone().prop_map(|by| Act::Append { by }),
        2 => Just(Act::Roster),
    ];
    let first = (user.clone(), user).prop_map(|(owner, member)| vec![Act::Create { owner, member }]);
    let acts = proptest::collection::vec(act, 1..6);
    // Turns after each call, or one call that waits while others do all of theirs.
    let turn = || prop_oneof![9 => Just(0_u8), 1 => 0..4_u8];
    let schedule = || prop_oneof![proptest::collection::vec(0..4_u8, 0..60), proptest::collection::vec(turn(), 0..60)];
    (
        prop_oneof![4 => first.boxed(), 1 => acts.clone().boxed()],
        schedule(),
        proptest::collection::vec((acts, schedule()), 0..8),
    )
        .prop_map(|(first, schedule, rest)| std::iter::once((first, schedule)).chain(rest).collect())
}

/// One group of users of its own, and somebody who follows it by version.
struct Caller {
    core: Core,
    engine: Arc<dyn Engine>,
    id: String,
    users: Vec<String>,
    sent: AtomicU32,
}

impl Caller {
    async fn new(core: Core, engine: Arc<dyn Engine>, number: u32) -> Self {
        let users: Vec<String> = (0..USERS).map(|n| format!("group{number}-{n}")).collect();
        let update = |id: &String| UserUpdate { user_id: id.clone(), ..UserUpdate::default() };
        core.upsert_users(UpsertUsersRequest { users: users.iter().map(update).collect() }).await.unwrap();
        Self { core, engine, id: format!("g:{}", Ulid::generate()), users, sent: AtomicU32::default() }
    }

    fn user(&self, user: u8) -> String {
        self.users[usize::from(user)].clone()
    }

    fn numbers(&self, users: &[String]) -> BTreeSet<u8> {
        users.iter().map(|user| self.number(user)).collect()
    }

    fn number(&self, user: &str) -> u8 {
        self.users.iter().position(|u| u == user).unwrap() as u8
    }

    fn views(&self, members: &[Member]) -> BTreeMap<u8, View> {
        let view = |m: &Member| View(m.role as u8, m.muted_until > 0, m.joined_seq);
        members.iter().map(|m| (self.number(&m.user_id), view(m))).collect()
    }

    async fn call(&self, act: &Act) -> Seen {
        match self.try_call(act).await {
            Ok(seen) => seen,
            Err(error) if matches!(error.code, Code::Unavailable | Code::DeadlineExceeded) => Seen::Unknown,
            Err(error) => refused(error.code_name()),
        }
    }

    async fn try_call(&self, act: &Act) -> Result<Seen, Error> {
        let (conversation_id, actor_id) = (self.id.clone(), self.user(0));
        Ok(match *act {
            Act::Create { owner, member } => {
                let request = CreateConversationRequest {
                    conversation_id,
                    kind: ConversationKind::Group as i32,
                    owner_id: self.user(owner),
                    member_ids: vec![self.user(member)],
                    idempotency_key: "one".to_owned(),
                    ..CreateConversationRequest::default()
                };
                Seen::Changed(self.core.create_conversation(request).await?.created)
            }
            Act::Add { users, admin } => {
                let role = if admin { Role::Admin as i32 } else { 0 };
                let user_ids = users.map(|user| self.user(user)).into();
                let request = AddMembersRequest { conversation_id, user_ids, role, actor_id };
                Seen::Users(self.numbers(&self.core.add_members(request).await?.added))
            }
            Act::Remove { users } => {
                let user_ids = users.map(|user| self.user(user)).into();
                let request = RemoveMembersRequest { conversation_id, user_ids, actor_id };
                Seen::Users(self.numbers(&self.core.remove_members(request).await?.removed))
            }
            Act::Update { user, role, muted } => {
                let request = UpdateMemberRequest {
                    conversation_id,
                    user_id: self.user(user),
                    role: role.map(i32::from),
                    muted_until: muted.map(|muted| if muted { MUTED } else { 0 }),
                    actor_id,
                };
                let member = self.core.update_member(request).await?;
                Seen::Is(member.role as u8, member.muted_until > 0)
            }
            Act::Transfer { to } => {
                let owner_id = Some(self.user(to));
                let request = UpdateConversationRequest { conversation_id, owner_id, actor_id, ..Default::default() };
                self.core.update_conversation(request).await?;
                Seen::Done
            }
            Act::Dissolve => {
                self.core.dissolve(DissolveRequest { conversation_id, actor_id }).await?;
                Seen::Done
            }
            Act::Append { by } => {
                let sent = self.sent.fetch_add(1, Ordering::Relaxed);
                let draft = Some(draft(&self.user(by), &format!("c-{sent}"), r#"{"text":"hi"}"#));
                Seen::At(self.core.append(AppendRequest { conversation_id, draft, ..Default::default() }).await?.seq)
            }
            Act::Roster => {
                let request = ListMembersRequest { conversation_id, ..Default::default() };
                Seen::Members(self.views(&self.core.list_members(request).await?.members))
            }
        })
    }

    async fn hash(&self, key: String) -> BTreeMap<String, bytes::Bytes> {
        let end = Instant::now() + Duration::from_secs(10);
        let wants = vec![Want::All(key)];
        match self.engine.get(ids::partition_of(&self.id, PARTITIONS), wants, end).await.unwrap().remove(0) {
            Got::All(fields) => fields.into_iter().collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Users who have a row, and those whose list holds the group.
    async fn rows_and_lists(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let rows = self.hash(key::members(&self.id)).await.into_keys().collect();
        let mut listed = BTreeSet::new();
        for user in &self.users {
            let end = Instant::now() + Duration::from_secs(10);
            let entries = self.engine.list(ids::partition_of(user, PARTITIONS), user, None, 100, end).await.unwrap();
            if entries.iter().any(|entry| entry.conversation_id == self.id) {
                listed.insert(user.clone());
            }
        }
        (rows, listed)
    }

    /// What holds when no call is under way; says whether the group is dissolved.
    async fn holds(&self) -> Result<(), TestCaseError> {
        let head = self.hash(key::conversation(&self.id)).await;
        if head.contains_key("di") {
            // Its members go in the background.
            for _ in 0..2_000 {
                if self.rows_and_lists().await == (BTreeSet::new(), BTreeSet::new()) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let left = self.rows_and_lists().await;
            return Err(TestCaseError::fail(format!("of a dissolved group rows and list entries are left: {left:?}")));
        }
        let (rows, listed) = self.rows_and_lists().await;
        prop_assert_eq!(&rows, &listed, "rows, and lists that hold the group");
        if head.is_empty() {
            prop_assert!(rows.is_empty());
            return Ok(());
        }
        let end = Instant::now() + Duration::from_secs(10);
        let partition = ids::partition_of(&self.id, PARTITIONS);
        let page = self.engine.members(partition, &self.id, -1, 100, end).await.unwrap().unwrap();
        prop_assert_eq!(page.members.iter().map(|m| m.user_id.clone()).collect::<BTreeSet<_>>(), rows.clone());
        prop_assert_eq!(page.count, rows.len() as u64);
        let request = ListMembersRequest { conversation_id: self.id.clone(), ..Default::default() };
        let members = self.core.list_members(request).await.unwrap().members;
        let owners: Vec<_> = members.iter().filter(|m| m.role() == Role::Owner).map(|m| m.user_id.as_bytes()).collect();
        prop_assert_eq!(owners, [head["ow"].as_ref()], "one owner");
        Ok(())
    }

    /// Brings somebody who stands at a version to the present one.
    async fn follow(&self, at: &mut (u64, BTreeMap<String, Member>), limit: u32) -> Result<(), TestCaseError> {
        let mut request = ListMembersRequest {
            conversation_id: self.id.clone(),
            since_version: Some(at.0),
            limit,
            ..Default::default()
        };
        loop {
            let page = match self.core.list_members(request.clone()).await {
                Ok(page) => page,
                Err(error) if error.code == Code::NotFound => return Ok(()),
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            };
            prop_assert!(!page.reset && page.members.len() + page.removed.len() <= limit as usize);
            for user in page.removed {
                at.1.remove(&user);
            }
            at.1.extend(page.members.into_iter().map(|m| (m.user_id.clone(), m)));
            if page.next_cursor.is_empty() {
                prop_assert!(at.0 <= page.member_version, "the version never goes back");
                at.0 = page.member_version;
                break;
            }
            request.cursor = page.next_cursor;
        }
        let request = ListMembersRequest { conversation_id: self.id.clone(), ..Default::default() };
        let whole = self.core.list_members(request).await.unwrap();
        let whole: BTreeMap<_, _> = whole.members.into_iter().map(|m| (m.user_id.clone(), m)).collect();
        prop_assert_eq!(&at.1, &whole, "what has changed since then");
        Ok(())
    }
}

async fn check(caller: &Caller, rounds: &Rounds, mut schedule: impl FnMut(&[u8])) -> Result<(), TestCaseError> {
    let mut states = BTreeSet::from([Group::default()]);
    let mut followers = [(0, BTreeMap::new()), (0, BTreeMap::new())];
    for (at, (acts, turns)) in rounds.iter().enumerate() {
        schedule(turns);
        let seen = futures::future::join_all(acts.iter().map(|act| caller.call(act))).await;
        schedule(&[]);
        let next = explain(&states, acts, &seen);
        let told = || {
            let lines: Vec<_> = acts.iter().zip(&seen).map(|(act, seen)| format!("\n  {act:?} -> {seen:?}")).collect();
            lines.concat()
        };
        if next.is_empty() {
            let told = told();
            return Err(TestCaseError::fail(format!("round {at}: no order of calls explains{told}\nfrom {states:?}")));
        }
        states = next;
        caller.holds().await.map_err(|error| TestCaseError::fail(format!("round {at}: {error}{}", told())))?;
        if states.iter().all(|state| !state.dissolved) {
            // One of them always, the other now and then.
            caller.follow(&mut followers[0], 1).await?;
            if at % 3 == 2 {
                caller.follow(&mut followers[1], 3).await?;
            }
        }
    }
    Ok(())
}

#[test]
fn calls_at_once_on_a_group_leave_rows_lists_owner_and_versions_right() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = runner(1_500).run(&rounds(), |rounds| {
        runtime.block_on(async {
            let engine = Arc::new(MemoryEngine::default());
            let core = Core::new(engine.clone(), PARTITIONS, Limits::default(), None);
            let caller = Caller::new(core, engine.clone(), 0).await;
            check(&caller, &rounds, |turns| engine.schedule(turns.iter().copied())).await
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn calls_at_once_on_a_group_in_valkey_leave_rows_lists_owner_and_versions_right() {
    let real = Real::start();
    let core = real.runtime.block_on(async { Core::new(real.engine.clone(), PARTITIONS, Limits::default(), None) });
    real.all_hold(100, &rounds(), async |number, rounds| {
        let caller = Caller::new(core.clone(), real.engine.clone(), number).await;
        check(&caller, &rounds, |_| {}).await
    });
}
