//! One example of each event, as it stands in the pages. Tests of readers may use them.

use super::Kind;

/// The data of a kind, as they are written.
pub const fn of(kind: Kind) -> &'static str {
    match kind {
        Kind::MessageCreated => {
            r#"{"conversation_id":"d:alice:bob","seq":"42","message_id":"01M3BM1Q007QDXFJ5N6VQ3HMJB","client_msg_id":"c-1","sender_id":"alice","sent_at":"1790000000000","type":"text","content":{"text":"hi"},"mentions":["bob"],"ext":{"k":"v"},"recalled":false,"edited_at":null,"reactions":{}}"#
        }
        Kind::MessageRecalled => {
            r#"{"conversation_id":"d:alice:bob","message_id":"01M3BM1Q007QDXFJ5N6VQ3HMJB","recalled_at":"1790000060000","seq":"42","user_id":"alice"}"#
        }
        Kind::MessageEdited => {
            r#"{"conversation_id":"d:alice:bob","seq":"42","message_id":"01M3BM1Q007QDXFJ5N6VQ3HMJB","user_id":"alice","content":{"text":"hello"},"edited_at":"1790000030000"}"#
        }
        Kind::MessageReaction => {
            r#"{"added":true,"conversation_id":"d:alice:bob","emoji":"👍","message_id":"01M3BM1Q007QDXFJ5N6VQ3HMJB","seq":"42","user_id":"bob"}"#
        }
        Kind::ReceiptRead => r#"{"conversation_id":"d:alice:bob","read_seq":"42","user_id":"bob"}"#,
        Kind::ReceiptDelivered => r#"{"conversation_id":"d:alice:bob","device_id":"phone","seq":"42","user_id":"bob"}"#,
        Kind::ConversationCreated => {
            r#"{"announcement":"","avatar_url":"","conversation_id":"g:01ARZ3NDEKTSV4RRFFQ69G5FAV","created_at":"1790000000000","idempotency_key":"k-1","join":"invite","kind":"group","member_ids":["alice"],"muted":false,"name":"Hikers","owner_id":"alice"}"#
        }
        Kind::ConversationCleared => r#"{"cleared_seq":"42","conversation_id":"d:alice:bob","user_id":"bob"}"#,
        Kind::GroupUpdated => {
            r#"{"actor_id":"alice","announcement":"at nine","avatar_url":"","conversation_id":"g:01ARZ3NDEKTSV4RRFFQ69G5FAV","group_id":"g:01ARZ3NDEKTSV4RRFFQ69G5FAV","join":"invite","muted":false,"name":"Hikers","owner_id":"bob","previous_owner_id":"alice","version":"7"}"#
        }
        Kind::GroupDissolved => {
            r#"{"actor_id":"alice","conversation_id":"g:01ARZ3NDEKTSV4RRFFQ69G5FAV","group_id":"g:01ARZ3NDEKTSV4RRFFQ69G5FAV"}"#
        }
        Kind::MemberAdded => {
            r#"{"actor_id":"alice","conversation_id":"g:01ARZ3NDEKTSV4RRFFQ69G5FAV","join_order":"2","joined_at":"1790000000000","joined_seq":"43","member_count":3,"member_version":"2","role":"member","user_ids":["bob","carol"]}"#
        }
        Kind::MemberRemoved => {
            r#"{"actor_id":"alice","conversation_id":"g:01ARZ3NDEKTSV4RRFFQ69G5FAV","member_count":2,"member_version":"3","user_ids":["carol"]}"#
        }
        Kind::MemberUpdated => {
            r#"{"actor_id":"alice","conversation_id":"g:01ARZ3NDEKTSV4RRFFQ69G5FAV","member_version":"4","muted_until":"0","role":"admin","user_id":"bob"}"#
        }
        Kind::MemberBlocked => {
            r#"{"blocked":true,"conversation_id":"d:alice:bob","joined_at":"1790000000000","user_id":"bob"}"#
        }
        Kind::FriendAdded => {
            r#"{"alias":"Bobby","at":"1790000000000","friend_id":"bob","since":"1790000000000","source_version":"0","user_id":"alice","version":"1"}"#
        }
        Kind::FriendRemoved => r#"{"at":"1790000000000","friend_id":"bob","source_version":"0","user_id":"alice"}"#,
        Kind::FriendRequested => {
            r#"{"requested_at":"1790000000000","requester_id":"bob","text":"it is me","user_id":"alice"}"#
        }
        Kind::FriendRequestSent => {
            r#"{"requested_at":"1790000000000","target_id":"alice","text":"it is me","user_id":"bob"}"#
        }
        Kind::FriendRequestSettled => r#"{"peer_id":"bob","side":"","user_id":"alice"}"#,
        Kind::BlockAdded | Kind::BlockRemoved => r#"{"at":"1790000000000","target_id":"bob","user_id":"alice"}"#,
        Kind::ProfileUpdated => {
            r#"{"attrs":{"city":"Bern"},"avatar_url":"https://pictures.example/alice","line":"shop","nickname":"Alice","source_version":"0","user_id":"alice","version":"3"}"#
        }
        Kind::ListEntered => r#"{"activity":"1790000000000","conversation_id":"d:alice:bob","user_id":"alice"}"#,
        Kind::ListLeft => r#"{"conversation_id":"d:alice:bob","user_id":"alice"}"#,
        Kind::ListUpdated => {
            r#"{"cleared_seq":"0","conversation_id":"d:alice:bob","muted":false,"pinned":true,"user_id":"alice"}"#
        }
        Kind::TokenRevoked => {
            r#"{"all_issued_at_or_before":"1780000000000","device_id":"phone","dropped":["tablet"],"issued_at_or_before":"1790000000000","user_id":"alice"}"#
        }
        Kind::SessionOpened | Kind::SessionResumed | Kind::SessionClosed => {
            r#"{"user_id":"alice","device_id":"phone","session_id":"01M3BM1Q00ZZZZZZZZZZZZZZZZ","platform":"ios","line":"shop","gateway":"10.0.0.9:8081","opened_at":"1790000000000","cursors":{"d:alice:bob":"41"}}"#
        }
    }
}
