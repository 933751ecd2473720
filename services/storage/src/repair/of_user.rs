//! What the events under a user's key changed: friends, blocks, the profile, the list, revoked tokens.

use kith_contract::ids;

use super::{
    change::{Change, Unrestorable, delete, parse, set},
    data,
};
use crate::{
    core::model::{EntryData, FriendRow, key},
    engine::{Op, Write},
};

/// Events under a user's key.
pub(super) fn read(kind: &str, user: &str, data: &[u8]) -> Result<Change, Unrestorable> {
    let writes = match kind {
        "friend.added" => {
            let d: data::FriendAdded = parse(user, data)?;
            ids::check_id("friend_id", &d.friend_id)?;
            let row = FriendRow { since: d.since.0, version: d.version.0, alias: d.alias }.pack();
            let key = key::friends(user);
            let mut writes = vec![
                set(key.clone(), format!("f{}", d.friend_id), row),
                delete(key.clone(), format!("i{}", d.friend_id)),
                delete(key, format!("o{}", d.friend_id)),
            ];
            writes.extend(d.source.write(user, &d.friend_id));
            writes
        }
        "friend.removed" => {
            let d: data::FriendRemoved = parse(user, data)?;
            let mut writes = vec![delete(key::friends(user), format!("f{}", d.friend_id))];
            writes.extend(d.source.write(user, &d.friend_id));
            writes
        }
        "friend.requested" => {
            let d: data::Requested = parse(user, data)?;
            ids::check_id("requester_id", &d.requester_id)?;
            let row = format!("{}|{}", d.requested_at.0, d.text);
            vec![set(key::friends(user), format!("i{}", d.requester_id), row)]
        }
        "friend.request_sent" => {
            let d: data::RequestSent = parse(user, data)?;
            ids::check_id("target_id", &d.target_id)?;
            vec![set(key::friends(user), format!("o{}", d.target_id), format!("{}|{}", d.requested_at.0, d.text))]
        }
        "friend.request_settled" => {
            let d: data::Settled = parse(user, data)?;
            let sides = ["i", "o"].into_iter().filter(|side| d.side.is_empty() || d.side == *side);
            sides.map(|side| delete(key::friends(user), format!("{side}{}", d.peer_id))).collect()
        }
        "block.added" => {
            let d: data::Block = parse(user, data)?;
            ids::check_id("target_id", &d.target_id)?;
            let at = d.at.ok_or_else(|| Unrestorable::Data("data.at: missing".into()))?;
            vec![set(key::blocks(user), d.target_id, at.0.to_string())]
        }
        "block.removed" => {
            let d: data::Block = parse(user, data)?;
            vec![delete(key::blocks(user), d.target_id)]
        }
        "profile.updated" => parse::<data::Profile>(user, data)?.writes()?,
        "list.entered" => {
            let d: data::Listed = parse(user, data)?;
            ids::check_conversation_id("conversation_id", &d.conversation_id)?;
            vec![Write::Op(Op::Score { key: key::list(user), score: d.activity.0, member: d.conversation_id })]
        }
        "list.left" => {
            let d: data::Unlisted = parse(user, data)?;
            vec![
                delete(key::settings(user), d.conversation_id.clone()),
                Write::Op(Op::Unscore { key: key::list(user), member: d.conversation_id }),
            ]
        }
        "list.updated" => {
            let d: data::Settings = parse(user, data)?;
            let entry = EntryData { pinned: d.pinned, muted: d.muted, cleared: d.cleared_seq.0 };
            let key = key::settings(user);
            if entry == EntryData::default() {
                vec![delete(key, d.conversation_id)]
            } else {
                vec![set(key, d.conversation_id, entry.pack())]
            }
        }
        "token.revoked" => {
            let d: data::Revoked = parse(user, data)?;
            let name = if d.device_id.is_empty() { "R".to_owned() } else { format!("r{}", d.device_id) };
            let key = key::devices(user);
            let mut writes = vec![set(key.clone(), name, d.issued_at_or_before.0.to_string())];
            writes.extend(d.all_issued_at_or_before.map(|all| set(key.clone(), "R".to_owned(), all.0.to_string())));
            writes.extend(d.dropped.into_iter().map(|device| delete(key.clone(), format!("r{device}"))));
            writes
        }
        other => return Err(Unrestorable::Kind(other.to_owned())),
    };
    ids::check_id("user_id", user)?;
    Ok(Change::plain(writes))
}
