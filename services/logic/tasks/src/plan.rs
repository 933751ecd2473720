//! Who gets what: a change and its audience into a delivery. No I/O.

use std::sync::Arc;

use kith_contract::{frames::EventName, ids};
use kith_proto::{
    chat::v1::Message,
    sessions::v1::delivery::{Event, Messages, Payload},
};

use crate::change::{Change, ConversationChange};

/// Larger conversations show read receipts to the reader's own devices alone.
pub const SMALL: usize = 200;

/// A conversation's members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members(Vec<Member>);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub user: Arc<str>,
    /// The first seq that the member may see.
    pub joined_seq: u64,
}

impl Members {
    /// From the rows of storage.
    pub fn new(members: Vec<Member>) -> Self {
        Self(members)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whose names must be looked up before a change can be planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needs {
    /// Nobody's: they follow from the change.
    Nobody,
    /// The members of this conversation.
    Members(String),
    /// The friends of this user.
    Friends(String),
}

/// What was looked up.
#[derive(Debug, Clone)]
pub enum Audience {
    /// Nothing.
    Nobody,
    /// A conversation's members.
    Members(Arc<Members>),
    /// A user's friends.
    Friends(Vec<Arc<str>>),
}

/// A delivery with its recipients, each named once.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Users.
    pub recipients: Vec<Arc<str>>,
    /// What they get.
    pub payload: Payload,
}

/// What must be known besides the change itself. The two users of a direct conversation are in its id: no look-up on the hot path.
pub fn needs(change: &Change) -> Needs {
    match change {
        Change::Message(message) => match direct(&message.conversation_id, Some(&message.sender_id)) {
            Some(_) => Needs::Nobody,
            None => Needs::Members(message.conversation_id.clone()),
        },
        Change::Conversation(change) => match direct(&change.conversation, change.actor.as_deref()) {
            Some(_) => Needs::Nobody,
            None => Needs::Members(change.conversation.clone()),
        },
        Change::Profile { user, .. } => Needs::Friends(user.clone()),
        Change::Users { .. } | Change::Ignored => Needs::Nobody,
    }
}

/// The delivery that follows; none when there is nobody to tell.
pub fn plan(change: Change, audience: &Audience) -> Option<Planned> {
    let (recipients, payload) = match change {
        Change::Message(message) => (message_recipients(&message, audience), messages(*message)),
        Change::Conversation(change) => {
            let recipients = change_recipients(&change, audience);
            (recipients, event(&change.event, change.data))
        }
        Change::Profile { user, data } => {
            let mut recipients = match audience {
                Audience::Friends(friends) => friends.clone(),
                Audience::Nobody | Audience::Members(_) => Vec::new(),
            };
            recipients.push(user.into());
            (recipients, event(&EventName::Profile, data))
        }
        Change::Users { event: name, users, data } => (users.into_iter().map(Into::into).collect(), event(&name, data)),
        Change::Ignored => return None,
    };
    let recipients = once_each(recipients);
    (!recipients.is_empty()).then_some(Planned { recipients, payload })
}

/// Both users of a direct conversation, when `user` is one of them. For senders from outside the member rows tell.
fn direct(conversation: &str, user: Option<&str>) -> Option<[Arc<str>; 2]> {
    let user = user?;
    Some([user.into(), ids::direct_peer(conversation, user)?.into()])
}

fn message_recipients(message: &Message, audience: &Audience) -> Vec<Arc<str>> {
    match audience {
        Audience::Members(members) => {
            // Who joined after it may not see it.
            members.0.iter().filter(|m| m.joined_seq <= message.seq).map(|m| m.user.clone()).collect()
        }
        Audience::Nobody | Audience::Friends(_) => {
            direct(&message.conversation_id, Some(&message.sender_id)).map(Vec::from).unwrap_or_default()
        }
    }
}

fn change_recipients(change: &ConversationChange, audience: &Audience) -> Vec<Arc<str>> {
    let actor = || change.actor.iter().map(|a| a.as_str().into());
    let mut recipients: Vec<Arc<str>> = match audience {
        Audience::Members(members) if change.small_only && members.len() > SMALL => actor().collect(),
        Audience::Members(members) => members.0.iter().map(|m| m.user.clone()).collect(),
        Audience::Nobody | Audience::Friends(_) => {
            direct(&change.conversation, change.actor.as_deref()).map(Vec::from).unwrap_or_default()
        }
    };
    recipients.extend(change.others.iter().map(|u| u.as_str().into()));
    recipients
}

fn once_each(mut users: Vec<Arc<str>>) -> Vec<Arc<str>> {
    users.retain(|u| !u.is_empty());
    users.sort_unstable();
    users.dedup();
    users
}

fn messages(message: Message) -> Payload {
    Payload::Messages(Messages { messages: vec![message], ..Messages::default() })
}

fn event(name: &EventName<'_>, data: bytes::Bytes) -> Payload {
    Payload::Event(Event { event: name.to_string(), data })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn message(conversation: &str, sender: &str, seq: u64) -> Change {
        let message = Message {
            conversation_id: conversation.to_owned(),
            sender_id: sender.to_owned(),
            seq,
            ..Message::default()
        };
        Change::Message(Box::new(message))
    }

    fn members(users: &[(&str, u64)]) -> Audience {
        Audience::Members(Arc::new(Members::new(
            users.iter().map(|(u, s)| Member { user: (*u).into(), joined_seq: *s }).collect(),
        )))
    }

    fn names(planned: Option<Planned>) -> Vec<String> {
        planned.map(|p| p.recipients.iter().map(ToString::to_string).collect()).unwrap_or_default()
    }

    #[test]
    fn a_direct_message_reaches_both_sides_without_a_look_up() {
        let change = message("d:alice:bob", "alice", 1);
        assert_eq!(needs(&change), Needs::Nobody);
        assert_eq!(names(plan(change, &Audience::Nobody)), ["alice", "bob"]);
    }

    #[test]
    fn groups_and_senders_from_outside_need_the_member_rows() {
        assert_eq!(needs(&message("d:a:b:c", "a", 1)), Needs::Members("d:a:b:c".to_owned()));
        assert_eq!(needs(&message("d:alice:bob", "system", 1)), Needs::Members("d:alice:bob".to_owned()));
        assert_eq!(needs(&message("g:1", "alice", 1)), Needs::Members("g:1".to_owned()));
    }

    #[test]
    fn a_member_who_joined_later_does_not_get_what_was_before() {
        let audience = members(&[("alice", 1), ("bob", 5), ("carol", 6)]);
        assert_eq!(names(plan(message("g:1", "alice", 5), &audience)), ["alice", "bob"]);
    }

    fn change(small_only: bool, others: &[&str]) -> Change {
        Change::Conversation(ConversationChange {
            conversation: "g:1".to_owned(),
            event: EventName::Group,
            actor: Some("alice".to_owned()),
            others: others.iter().map(ToString::to_string).collect(),
            members_changed: !others.is_empty(),
            small_only,
            data: Bytes::from_static(b"{}"),
        })
    }

    #[test]
    fn who_was_removed_is_told_too() {
        assert_eq!(names(plan(change(false, &["bob"]), &members(&[("alice", 1)]))), ["alice", "bob"]);
    }

    #[test]
    fn read_receipts_of_a_large_group_stay_with_the_reader() {
        let many: Vec<String> = (0..=SMALL).map(|i| format!("u{i}")).collect();
        let large = members(&many.iter().map(|u| (u.as_str(), 1)).collect::<Vec<_>>());
        assert_eq!(names(plan(change(true, &[]), &large)), ["alice"]);
        assert_eq!(names(plan(change(true, &[]), &members(&[("alice", 1), ("bob", 1)]))), ["alice", "bob"]);
    }

    #[test]
    fn a_profile_goes_to_friends_and_own_devices() {
        let change = Change::Profile { user: "alice".to_owned(), data: Bytes::from_static(b"{}") };
        assert_eq!(needs(&change), Needs::Friends("alice".to_owned()));
        assert_eq!(names(plan(change, &Audience::Friends(vec!["bob".into()]))), ["alice", "bob"]);
    }

    proptest! {
        #[test]
        fn a_direct_message_never_reaches_a_third_user(a in "[a-z.]{1,8}", b in "[a-z.]{1,8}", sender_first in any::<bool>()) {
            let Ok(conversation) = ids::direct_conversation_id(&a, &b) else { return Ok(()) };
            let change = message(&conversation, if sender_first { &a } else { &b }, 1);
            if needs(&change) == Needs::Nobody {
                let mut both = [a, b];
                both.sort_unstable();
                prop_assert_eq!(names(plan(change, &Audience::Nobody)), both);
            }
        }
    }
}
