//! The contract's names and the numbers that gRPC has for them: the one place where they meet.

use kith_contract::kinds;

use crate::{
    chat::v1::{ConversationKind, MessageType, Platform},
    storage::v1::Role,
};

/// Both ways between a set of names and an enum, where one that is not set counts as a name.
macro_rules! named {
    ($($theirs:ident = $ours:ident, unset: $unset:ident { $($variant:ident),* })*) => {$(
        impl From<kinds::$ours> for $theirs {
            fn from(ours: kinds::$ours) -> Self {
                match ours { $(kinds::$ours::$variant => Self::$variant,)* }
            }
        }

        impl From<$theirs> for kinds::$ours {
            fn from(theirs: $theirs) -> Self {
                match theirs {
                    $theirs::Unspecified => Self::$unset,
                    $($theirs::$variant => Self::$variant,)*
                }
            }
        }
    )*};
}
named! {
    MessageType = MessageType, unset: Custom { Text, Image, File, Audio, Video, Location, Card, Custom, System }
    ConversationKind = ConversationKind, unset: Direct { Direct, Group, System }
    Role = Role, unset: Member { Owner, Admin, Member }
}

impl From<kinds::Platform> for Platform {
    fn from(ours: kinds::Platform) -> Self {
        match ours {
            kinds::Platform::Ios => Self::Ios,
            kinds::Platform::Android => Self::Android,
            kinds::Platform::Web => Self::Web,
            kinds::Platform::Mweb => Self::Mweb,
            kinds::Platform::Pc => Self::Pc,
        }
    }
}

impl Platform {
    /// The contract's platform; none for one that is not set.
    pub fn known(self) -> Option<kinds::Platform> {
        match self {
            Self::Unspecified => None,
            Self::Ios => Some(kinds::Platform::Ios),
            Self::Android => Some(kinds::Platform::Android),
            Self::Web => Some(kinds::Platform::Web),
            Self::Mweb => Some(kinds::Platform::Mweb),
            Self::Pc => Some(kinds::Platform::Pc),
        }
    }
}
