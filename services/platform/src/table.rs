//! The table: every service, once. A new one is a row here, a crate and a `.proto`; `make generate` does the rest.
//!
//! The order of the rows shows in what is rendered (accounts, the peers of network policies), so rows stay where they are.

use crate::{Consumer, Declaration, EventLog, Keys, Layer, Rpc, Serves, topic};

use Service::{Api, Business, Gateway, Sessions, Storage, Tasks};

/// Those through which messages come in.
const DOORWAYS: &[Service] = &[Api, Gateway, Business];
/// Those that serve users or lines on request.
const REQUESTS: &[Service] = &[Api, Business];
/// Those that read: on request, and for what the event log tells.
const READERS: &[Service] = &[Api, Gateway, Business, Tasks];

/// Makes the rows one type, and finds the row of each.
macro_rules! table {
    ($($variant:ident { $($row:tt)* }),* $(,)?) => {
        /// A service of the platform, in the order of the table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Service {
            $(
                #[allow(missing_docs)] // Its row says what it is.
                $variant,
            )*
        }

        impl Service {
            /// Every service.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// What the table says of it.
            pub const fn declaration(self) -> &'static Declaration {
                match self {
                    $(Self::$variant => &Declaration { $($row)* },)*
                }
            }

            /// As Rust code calls it.
            pub const fn variant(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)*
                }
            }
        }
    };
}

table!(
    Storage {
        name: "storage",
        about: "the only service that reads and writes chat data. Its pods share the partitions among them.",
        layer: Layer::Storage,
        serves: Serves::Platform(STORAGE),
        engine: true,
        // It reads what it published when it repairs a loss.
        log: EventLog { writes: &[topic::EVENTS], scans: &[topic::EVENTS], ..EventLog::NONE },
        ..Declaration::BASE
    },
    Tasks {
        name: "tasks",
        about: "delivers what the event log tells to those who are online, and what a device missed when it logs in.",
        layer: Layer::Logic,
        log: EventLog {
            consumes: &[
                Consumer { group: "tasks", topic: topic::EVENTS },
                Consumer { group: "tasks-login", topic: topic::SESSIONS },
            ],
            makes: &[topic::SET_ASIDE],
            ..EventLog::NONE
        },
        ..Declaration::BASE
    },
    Sessions {
        name: "sessions",
        about: "knows who is online where.",
        layer: Layer::Logic,
        serves: Serves::Platform(SESSIONS),
        log: EventLog { writes: &[topic::SESSIONS], ..EventLog::NONE },
        ..Declaration::BASE
    },
    Business {
        name: "business",
        about: "ImBusiness, the endpoint of business lines.",
        layer: Layer::Access,
        serves: Serves::Lines("kith.business.v1.ImBusiness"),
        keys: Keys::Signs,
        ..Declaration::BASE
    },
    Api {
        name: "api",
        about: "the HTTP API, for short connections of clients.",
        layer: Layer::Access,
        port: 8_080,
        serves: Serves::Clients,
        keys: Keys::Checks,
        ..Declaration::BASE
    },
    Gateway {
        name: "gateway",
        about: "the WebSocket, for long connections of clients.",
        layer: Layer::Access,
        port: 8_081,
        serves: Serves::Clients,
        keys: Keys::Checks,
        ..Declaration::BASE
    },
);

const STORAGE: &[Rpc] = &[
    Rpc {
        name: "kith.storage.v1.Messages",
        methods: &[
            ("Append", DOORWAYS),
            ("AppendStream", DOORWAYS),
            ("ListMessages", REQUESTS),
            ("ListAfter", READERS),
            ("Recall", REQUESTS),
            ("Edit", &[Api]),
            ("React", &[Api]),
        ],
    },
    Rpc {
        name: "kith.storage.v1.Conversations",
        methods: &[
            ("OpenDirect", DOORWAYS),
            ("CreateConversation", REQUESTS),
            ("UpdateConversation", REQUESTS),
            ("Dissolve", REQUESTS),
            ("GetConversations", READERS),
            ("ListConversations", REQUESTS),
            ("SetListEntry", &[Api]),
            ("Clear", &[Api]),
            ("MarkRead", &[Api]),
            ("Ack", &[Api, Gateway, Sessions]),
            ("ListBehind", &[Api, Gateway, Tasks]),
            ("GetReceipts", &[Api]),
            // Whether a record of the event log can be one of storage's.
            ("GetVersion", &[Tasks]),
            ("AddMembers", REQUESTS),
            ("RemoveMembers", REQUESTS),
            ("UpdateMember", REQUESTS),
            ("ListMembers", READERS),
        ],
    },
    Rpc {
        name: "kith.storage.v1.Users",
        methods: &[
            ("UpsertUsers", REQUESTS),
            ("GetUsers", READERS),
            ("ListFriends", &[Api, Tasks]),
            ("PutFriend", &[Api]),
            ("DeleteFriend", &[Api]),
            ("RequestFriend", &[Api]),
            ("ListFriendRequests", &[Api]),
            ("AnswerFriendRequest", &[Api]),
            ("SetBlock", &[Api]),
            ("ListBlocks", &[Api]),
            ("PutDevice", &[Api, Business, Sessions]),
            ("ListDevices", REQUESTS),
            ("DeleteDevice", &[Api]),
            ("RevokeTokens", REQUESTS),
            ("GetRevocation", DOORWAYS),
        ],
    },
    // `kith repair` runs in a storage pod and shows that pod's certificate.
    Rpc {
        name: "kith.storage.v1.Peer",
        methods: &[("Leaving", &[Storage]), ("Partitions", &[Storage]), ("Apply", &[Storage]), ("Repair", &[Storage])],
    },
];

const SESSIONS: &[Rpc] = &[Rpc {
    name: "kith.sessions.v1.Sessions",
    methods: &[
        ("Attach", &[Gateway]),
        // Typing goes from gateway to gateway without being stored.
        ("Deliver", &[Tasks, Gateway]),
        ("QueryPresence", REQUESTS),
        ("Kick", REQUESTS),
        ("Ack", &[Api, Gateway]),
    ],
}];
