//! What the events under a user's key changed: friends, blocks, the profile, the list, revoked tokens.

use kith_contract::ids;

use super::{
    change::{Change, Event, Unrestorable, delete, set},
    data,
};
use crate::{
    core::model::{EntryData, FriendRow, key},
    engine::{Op, Write},
};

/// Events under a user's key.
pub(super) fn read(user: &str, event: Event<'_>) -> Result<Change, Unrestorable> {
    let writes = match event {
        Event::FriendAdded(d) => {
            ids::check_id("friend_id", &d.friend_id)?;
            let row = FriendRow { since: d.since, version: d.version, alias: d.alias.into_owned() }.pack();
            let key = key::friends(user);
            let mut writes = vec![
                set(key.clone(), format!("f{}", d.friend_id), row),
                delete(key.clone(), format!("i{}", d.friend_id)),
                delete(key, format!("o{}", d.friend_id)),
            ];
            writes.extend(data::source(user, &d.friend_id, d.source_version, d.at));
            writes
        }
        Event::FriendRemoved(d) => {
            let mut writes = vec![delete(key::friends(user), format!("f{}", d.friend_id))];
            writes.extend(data::source(user, &d.friend_id, d.source_version, d.at));
            writes
        }
        Event::FriendRequested(d) => {
            ids::check_id("requester_id", &d.requester_id)?;
            let row = format!("{}|{}", d.requested_at, d.text);
            vec![set(key::friends(user), format!("i{}", d.requester_id), row)]
        }
        Event::FriendRequestSent(d) => {
            ids::check_id("target_id", &d.target_id)?;
            vec![set(key::friends(user), format!("o{}", d.target_id), format!("{}|{}", d.requested_at, d.text))]
        }
        Event::FriendRequestSettled(d) => {
            let sides = ["i", "o"].into_iter().filter(|side| d.side.is_empty() || d.side == *side);
            sides.map(|side| delete(key::friends(user), format!("{side}{}", d.peer_id))).collect()
        }
        Event::BlockAdded(d) => {
            ids::check_id("target_id", &d.target_id)?;
            let at = d.at.ok_or_else(|| Unrestorable::Data("data.at: missing".into()))?;
            vec![set(key::blocks(user), d.target_id, at.0.to_string())]
        }
        Event::BlockRemoved(d) => vec![delete(key::blocks(user), d.target_id)],
        Event::ProfileUpdated(d) => data::profile(d)?,
        Event::ListEntered(d) => {
            ids::check_conversation_id("conversation_id", &d.conversation_id)?;
            let member = d.conversation_id.into_owned();
            vec![Write::Op(Op::Score { key: key::list(user), score: d.activity, member })]
        }
        Event::ListLeft(d) => {
            let left = d.conversation_id.told();
            let member =
                left.ok_or_else(|| Unrestorable::Data("data.conversation_id: it was not put in".into()))?.into_owned();
            vec![delete(key::settings(user), member.clone()), Write::Op(Op::Unscore { key: key::list(user), member })]
        }
        Event::ListUpdated(d) => {
            let entry = EntryData { pinned: d.pinned, muted: d.muted, cleared: d.cleared_seq };
            let key = key::settings(user);
            if entry == EntryData::default() {
                vec![delete(key, d.conversation_id)]
            } else {
                vec![set(key, d.conversation_id, entry.pack())]
            }
        }
        Event::TokenRevoked(d) => {
            let name = if d.device_id.is_empty() { "R".to_owned() } else { format!("r{}", d.device_id) };
            let key = key::devices(user);
            let mut writes = vec![set(key.clone(), name, d.issued_at_or_before.to_string())];
            writes.extend(d.all_issued_at_or_before.map(|all| set(key.clone(), "R".to_owned(), all.0.to_string())));
            writes.extend(d.dropped.iter().map(|device| delete(key.clone(), format!("r{device}"))));
            writes
        }
        other => return Err(Unrestorable::Kind(other.kind().to_string())),
    };
    ids::check_id("user_id", user)?;
    Ok(Change::plain(writes))
}
