//! The data of each kind of event.
//!
//! Fields stand in the order in which they are written: by name, as they have been since the first version, but for messages and sessions.
//! The data of an event are enough to restore what it changed. A field with a default is one that restoring does without.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    found::Found,
    json::{AnyObject, Decimal, I64, U64, Whole},
    kinds::{ConversationKind, Platform, Role},
};

/// Declares data: each can be written, read and described.
macro_rules! data {
    ($($(#[$doc:meta])* $name:ident<$($generic:tt),+> { $($fields:tt)* })*) => {$(
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        $(#[$doc])*
        pub struct $name<$($generic),+> { $($fields)* }
    )*};
}

data! {
    /// A message was taken back.
    MessageRecalled<'a> {
        /// Where.
        pub conversation_id: Cow<'a, str>,
        /// ULID.
        #[serde(default)]
        pub message_id: Cow<'a, str>,
        /// Unix ms.
        #[serde(with = "Decimal")]
        pub recalled_at: i64,
        /// Which message.
        #[serde(with = "Decimal")]
        pub seq: u64,
        /// Who did it.
        #[serde(default)]
        pub user_id: Cow<'a, str>,
    }

    /// A message has another content.
    #[schemars(bound = "C: JsonSchema + Default")]
    MessageEdited<'a, C> {
        /// Where.
        pub conversation_id: Cow<'a, str>,
        /// Which message.
        #[serde(with = "Decimal")]
        pub seq: u64,
        /// ULID.
        #[serde(default)]
        pub message_id: Cow<'a, str>,
        /// Who did it.
        #[serde(default)]
        pub user_id: Cow<'a, str>,
        /// The new content, at most 64 KiB.
        #[serde(default)]
        #[schemars(with = "AnyObject")]
        pub content: C,
        /// The content in hexadecimal, where it was given in a way that JSON does not give back byte by byte; else absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub content_bytes: Option<Cow<'a, str>>,
        /// Unix ms.
        #[serde(with = "Decimal")]
        pub edited_at: i64,
    }

    /// A user's reaction to a message.
    MessageReaction<'a> {
        /// False: taken away.
        pub added: bool,
        /// Where.
        pub conversation_id: Cow<'a, str>,
        /// One emoji without U+FE0F, or a shortcode.
        pub emoji: Cow<'a, str>,
        /// ULID.
        #[serde(default)]
        pub message_id: Cow<'a, str>,
        /// Which message.
        #[serde(with = "Decimal")]
        pub seq: u64,
        /// Whose.
        pub user_id: Cow<'a, str>,
    }

    /// A member has read.
    ReceiptRead<'a> {
        /// Where.
        pub conversation_id: Cow<'a, str>,
        /// Up to and with this message; never moves back.
        pub read_seq: Found<U64>,
        /// Who.
        pub user_id: Cow<'a, str>,
    }

    /// Messages arrived at a device.
    ReceiptDelivered<'a> {
        /// Where.
        pub conversation_id: Cow<'a, str>,
        /// At which device.
        pub device_id: Cow<'a, str>,
        /// Up to and with this message; never moves back.
        pub seq: Found<U64>,
        /// Whose.
        pub user_id: Cow<'a, str>,
    }

    /// A member has cleared a conversation.
    ConversationCleared<'a> {
        /// Up to and with this message.
        pub cleared_seq: Found<U64>,
        /// Which.
        pub conversation_id: Cow<'a, str>,
        /// Who.
        pub user_id: Cow<'a, str>,
    }

    /// A conversation begins. A direct one has no fields of a group.
    ConversationCreated<'a> {
        /// Of a group.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub announcement: Option<Cow<'a, str>>,
        /// Of a group.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub avatar_url: Option<Cow<'a, str>>,
        /// Which.
        pub conversation_id: Cow<'a, str>,
        /// Unix ms.
        #[serde(with = "Decimal")]
        pub created_at: i64,
        /// What the call was made with that made it; empty: without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub idempotency_key: Option<Cow<'a, str>>,
        /// How users come into a group: open, approval or invite; empty: not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub join: Option<Cow<'a, str>>,
        /// What it is.
        pub kind: ConversationKind,
        /// The first of its members, in the order of joining.
        pub member_ids: Cow<'a, [String]>,
        /// Of a group: whether only its owner and admins may write.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub muted: Option<bool>,
        /// Of a group.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub name: Option<Cow<'a, str>>,
        /// Of a group; empty: nobody.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub owner_id: Option<Cow<'a, str>>,
    }

    /// A group's own fields as they are now.
    GroupUpdated<'a> {
        /// Who did it.
        #[serde(default)]
        pub actor_id: Cow<'a, str>,
        /// What is announced.
        #[serde(default)]
        pub announcement: Cow<'a, str>,
        /// Its picture.
        #[serde(default)]
        pub avatar_url: Cow<'a, str>,
        /// Which.
        pub conversation_id: Cow<'a, str>,
        /// The same.
        #[serde(default)]
        pub group_id: Cow<'a, str>,
        /// How users come in: open, approval or invite; empty: not said.
        #[serde(default)]
        pub join: Cow<'a, str>,
        /// Whether only its owner and admins may write.
        #[serde(default)]
        pub muted: bool,
        /// Its name.
        #[serde(default)]
        pub name: Cow<'a, str>,
        /// Where it has another owner: that one, who becomes owner by this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub owner_id: Option<Cow<'a, str>>,
        /// Where it has another owner: the one before, who becomes admin by this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub previous_owner_id: Option<Cow<'a, str>>,
        /// Rises with every change.
        #[serde(with = "Decimal")]
        pub version: u64,
    }

    /// A group has ended.
    GroupDissolved<'a> {
        /// Who did it.
        #[serde(default)]
        pub actor_id: Cow<'a, str>,
        /// Which.
        pub conversation_id: Cow<'a, str>,
        /// The same.
        #[serde(default)]
        pub group_id: Cow<'a, str>,
    }

    /// Users have come in.
    MemberAdded<'a> {
        /// Who brought them in.
        #[serde(default)]
        pub actor_id: Cow<'a, str>,
        /// Where.
        pub conversation_id: Cow<'a, str>,
        /// The place of the first of them in the order of joining; the others follow.
        #[serde(with = "Decimal")]
        pub join_order: i64,
        /// Unix ms.
        #[serde(with = "Decimal")]
        pub joined_at: i64,
        /// The first message that they see.
        pub joined_seq: Found<U64>,
        /// Members now.
        #[serde(with = "Whole")]
        pub member_count: u64,
        /// Rises with every change of the members.
        #[serde(with = "Decimal")]
        pub member_version: u64,
        /// What all of them are.
        pub role: Role,
        /// Who, in the order of joining.
        pub user_ids: Cow<'a, [String]>,
    }

    /// Members have gone.
    MemberRemoved<'a> {
        /// Who sent them away; one of them: by themselves.
        #[serde(default)]
        pub actor_id: Cow<'a, str>,
        /// Where.
        pub conversation_id: Cow<'a, str>,
        /// Members now.
        #[serde(with = "Whole")]
        pub member_count: u64,
        /// Rises with every change of the members.
        #[serde(with = "Decimal")]
        pub member_version: u64,
        /// Who.
        pub user_ids: Cow<'a, [String]>,
    }

    /// A member's role or mute is another.
    MemberUpdated<'a> {
        /// Who did it.
        #[serde(default)]
        pub actor_id: Cow<'a, str>,
        /// Where.
        pub conversation_id: Cow<'a, str>,
        /// Rises with every change of the members.
        #[serde(with = "Decimal")]
        pub member_version: u64,
        /// Unix ms; "0": may write.
        #[serde(with = "Decimal")]
        pub muted_until: i64,
        /// What the member is now.
        pub role: Role,
        /// Who.
        pub user_id: Cow<'a, str>,
    }

    /// Messages of one side are refused, or are taken again.
    MemberBlocked<'a> {
        /// Whether they are refused.
        pub blocked: bool,
        /// Where.
        pub conversation_id: Cow<'a, str>,
        /// Unix ms.
        #[serde(with = "Decimal")]
        pub joined_at: i64,
        /// Whose messages.
        pub user_id: Cow<'a, str>,
    }

    /// A user has a friend.
    FriendAdded<'a> {
        /// What the user calls the friend; empty: nothing of their own.
        pub alias: Cow<'a, str>,
        /// Unix ms of this change. Absent in events of the first versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub at: Option<I64>,
        /// Who.
        pub friend_id: Cow<'a, str>,
        /// Unix ms.
        #[serde(with = "Decimal")]
        pub since: i64,
        /// The version of the line's own record that brought it; "0": none did. Absent in events of the first versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub source_version: Option<U64>,
        /// Whose.
        pub user_id: Cow<'a, str>,
        /// Rises with every change of this friendship on this side.
        #[serde(with = "Decimal")]
        pub version: u64,
    }

    /// A friendship has ended.
    FriendRemoved<'a> {
        /// Unix ms of this change. Absent in events of the first versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub at: Option<I64>,
        /// With whom.
        pub friend_id: Cow<'a, str>,
        /// The version of the line's own record up to which it is known; "0": of none. Absent in events of the first versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub source_version: Option<U64>,
        /// Whose.
        pub user_id: Cow<'a, str>,
    }

    /// Somebody asks.
    FriendRequested<'a> {
        /// Unix ms.
        #[serde(with = "Decimal")]
        pub requested_at: i64,
        /// Who asks.
        pub requester_id: Cow<'a, str>,
        /// In these words.
        pub text: Cow<'a, str>,
        /// Whom.
        pub user_id: Cow<'a, str>,
    }

    /// The user has asked.
    FriendRequestSent<'a> {
        /// Unix ms.
        #[serde(with = "Decimal")]
        pub requested_at: i64,
        /// Whom.
        pub target_id: Cow<'a, str>,
        /// In these words.
        pub text: Cow<'a, str>,
        /// Who asks.
        pub user_id: Cow<'a, str>,
    }

    /// A request waits no longer.
    FriendRequestSettled<'a> {
        /// The other user.
        pub peer_id: Cow<'a, str>,
        /// `i`: the one from the other user alone; `o`: the one to them alone; empty: both.
        #[serde(default)]
        pub side: Cow<'a, str>,
        /// Whose.
        pub user_id: Cow<'a, str>,
    }

    /// A block, or its end.
    Block<'a> {
        /// Unix ms. Absent in events of the first versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub at: Option<I64>,
        /// Who is blocked.
        pub target_id: Cow<'a, str>,
        /// Who blocks.
        pub user_id: Cow<'a, str>,
    }

    /// A profile as it is now.
    ProfileUpdated<'a> {
        /// The line's own facts.
        pub attrs: Cow<'a, BTreeMap<String, String>>,
        /// The picture.
        pub avatar_url: Cow<'a, str>,
        /// The business line that the user belongs to.
        pub line: Cow<'a, str>,
        /// The name that others see.
        pub nickname: Cow<'a, str>,
        /// The version of the line's own record that it stands at; "0": of none. Absent in events of the first versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub source_version: Option<U64>,
        /// Whose.
        pub user_id: Cow<'a, str>,
        /// Rises with every change.
        #[serde(with = "Decimal")]
        pub version: u64,
    }

    /// A conversation stands in a list.
    ListEntered<'a> {
        /// Unix ms: where it stands among the others.
        #[serde(with = "Decimal")]
        pub activity: i64,
        /// Which.
        pub conversation_id: Cow<'a, str>,
        /// Whose list.
        pub user_id: Cow<'a, str>,
    }

    /// A conversation has left a list.
    ListLeft<'a> {
        /// Which.
        pub conversation_id: Found<Cow<'a, str>>,
        /// Whose list.
        pub user_id: Cow<'a, str>,
    }

    /// A user's own settings of a conversation.
    ListUpdated<'a> {
        /// Up to and with this message nothing is shown.
        #[serde(with = "Decimal")]
        pub cleared_seq: u64,
        /// Which.
        pub conversation_id: Cow<'a, str>,
        /// No pushes.
        pub muted: bool,
        /// Above the others.
        pub pinned: bool,
        /// Whose.
        pub user_id: Cow<'a, str>,
    }

    /// Tokens are dead.
    TokenRevoked<'a> {
        /// Unix ms: what the revocation of all tokens was raised to, since there were too many of single devices.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub all_issued_at_or_before: Option<I64>,
        /// Of this device; empty: of all.
        pub device_id: Cow<'a, str>,
        /// Devices whose revocations have become superfluous.
        #[serde(default, skip_serializing_if = "<[String]>::is_empty")]
        pub dropped: Cow<'a, [String]>,
        /// Unix ms: those that were issued up to then.
        #[serde(with = "Decimal")]
        pub issued_at_or_before: i64,
        /// Whose.
        pub user_id: Cow<'a, str>,
    }

    /// A session.
    SessionData<'a> {
        /// Whose.
        pub user_id: Cow<'a, str>,
        /// On which device.
        pub device_id: Cow<'a, str>,
        /// Unique over the platform.
        pub session_id: Cow<'a, str>,
        /// ios, android, web, mweb or pc; "unknown" where nobody said.
        #[serde(default, serialize_with = "platform", deserialize_with = "known_platform")]
        #[schemars(with = "String")]
        pub platform: Option<Platform>,
        /// The user's business line.
        #[serde(default)]
        pub line: Cow<'a, str>,
        /// The gateway's address inside the platform.
        #[serde(default)]
        pub gateway: Cow<'a, str>,
        /// Unix ms.
        #[serde(default, with = "Decimal")]
        pub opened_at: i64,
        /// Where the client says that it is, by conversation.
        #[serde(default)]
        pub cursors: BTreeMap<Cow<'a, str>, U64>,
    }

    /// Where a repair's reading ends.
    RepairMarker<'a> {
        /// Kith partition.
        pub partition: u32,
        /// Which repair.
        pub repair_id: Cow<'a, str>,
    }
}

/// Where nobody said which platform.
const UNKNOWN: &str = "unknown";

// By reference, as serde hands fields over.
#[allow(clippy::ref_option, clippy::trivially_copy_pass_by_ref)]
fn platform<S: Serializer>(platform: &Option<Platform>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(platform.map_or(UNKNOWN, Platform::as_str))
}

/// One of a later version is none that is known here.
fn known_platform<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Platform>, D::Error> {
    Ok(Cow::<'de, str>::deserialize(deserializer)?.parse().ok())
}
