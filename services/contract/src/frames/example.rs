//! One example of each frame, as it stands in the page.

/// Frames of clients, by their `type`.
pub const CLIENT: [(&str, &str); 5] = [
    (
        "auth",
        r#"{"type":"auth","token":"eyJhbGciOiJFZERTQSJ9.e30.AA","cursors":{"d:alice:bob":"41"},"resume_token":"r1.01M3BM1Q00ZZZZZZZZZZZZZZZZ.1a0c24ab800.0123456789abcdef"}"#,
    ),
    ("ack", r#"{"type":"ack","acks":[{"conversation_id":"d:alice:bob","seq":"42"}]}"#),
    (
        "send",
        r#"{"type":"send","id":"1","message":{"client_msg_id":"c-1","recipient_id":"bob","type":"text","content":{"text":"hi"},"mentions":["bob"],"ext":{"k":"v"}}}"#,
    ),
    ("typing", r#"{"type":"typing","conversation_id":"d:alice:bob"}"#),
    ("ping", r#"{"type":"ping"}"#),
];

/// Frames of the server, by their `type`.
pub const SERVER: [(&str, &str); 7] = [
    (
        "hello",
        r#"{"type":"hello","session_id":"01M3BM1Q00ZZZZZZZZZZZZZZZZ","user_id":"alice","heartbeat_ms":"30000","resumed":false,"resume_token":"r1.01M3BM1Q00ZZZZZZZZZZZZZZZZ.1a0c24ab800.0123456789abcdef","server_time":"1790000000000"}"#,
    ),
    (
        "messages",
        r#"{"type":"messages","messages":[{"conversation_id":"d:alice:bob","seq":"42","message_id":"01M3BM1Q007QDXFJ5N6VQ3HMJB","client_msg_id":"c-1","sender_id":"alice","sent_at":"1790000000000","type":"text","content":{"text":"hi"},"mentions":["bob"],"ext":{"k":"v"},"recalled":false,"edited_at":null,"reactions":{"👍":["bob"]},"reaction_counts":{"👍":1},"my_reactions":["👍"]}],"has_more":{"d:alice:bob":true}}"#,
    ),
    (
        "sent",
        r#"{"type":"sent","id":"1","message_id":"01M3BM1Q007QDXFJ5N6VQ3HMJB","conversation_id":"d:alice:bob","seq":"42","sent_at":"1790000000000","duplicate":false}"#,
    ),
    (
        "error",
        r#"{"type":"error","id":"1","code":"PERMISSION_DENIED","reason":"BLOCKED","detail":"the recipient does not take your messages"}"#,
    ),
    (
        "event",
        r#"{"type":"event","event":"read","data":{"conversation_id":"d:alice:bob","read_seq":"42","user_id":"bob"}}"#,
    ),
    ("pong", r#"{"type":"pong"}"#),
    (
        "reconnect",
        r#"{"type":"reconnect","after_ms":"1200","resume_token":"r1.01M3BM1Q00ZZZZZZZZZZZZZZZZ.1a0c24ab800.0123456789abcdef"}"#,
    ),
];
