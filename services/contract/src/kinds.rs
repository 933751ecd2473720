//! The closed sets of names: kinds of conversations and messages, platforms, roles, providers of pushes, ways into a group.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Refused;

/// Declares a set of names: an enum that is written and read by them.
macro_rules! names {
    ($($(#[$doc:meta])* $set:ident, $field:literal { $($(#[$of:meta])* $variant:ident = $name:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $set { $($(#[$of])* $variant,)* }

        impl $set {
            /// All of them, in the order of the contract.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// Their names, in the same order.
            pub const NAMES: &'static [&'static str] = &[$($name,)*];

            /// The name in the contract.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }

        impl FromStr for $set {
            type Err = Refused;

            fn from_str(name: &str) -> Result<Self, Refused> {
                match name {
                    $($name => Ok(Self::$variant),)*
                    _ => Err(Refused::new(format!("{}: one of {}", $field, Self::NAMES.join(", ")))),
                }
            }
        }

        impl fmt::Display for $set {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $set {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $set {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Name;
                impl de::Visitor<'_> for Name {
                    type Value = $set;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "one of {}", $set::NAMES.join(", "))
                    }
                    fn visit_str<E: de::Error>(self, name: &str) -> Result<$set, E> {
                        name.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(name), &self))
                    }
                }
                deserializer.deserialize_str(Name)
            }
        }

        impl JsonSchema for $set {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($set).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "enum": Self::NAMES})
            }
        }
    )*};
}

names! {
    /// What a conversation is.
    ConversationKind, "kind" {
        /// Of two users.
        Direct = "direct",
        /// Of members with roles.
        Group = "group",
        /// A channel of a business line.
        System = "system",
    }

    /// What a message is.
    MessageType, "type" {
        /// A text that is not blank.
        Text = "text",
        /// A picture.
        Image = "image",
        /// A file.
        File = "file",
        /// A recording.
        Audio = "audio",
        /// A film.
        Video = "video",
        /// A place on a map.
        Location = "location",
        /// A card that the client renders.
        Card = "card",
        /// What only the business line's own clients understand.
        Custom = "custom",
        /// From business lines and the platform only.
        System = "system",
    }

    /// What a device runs.
    Platform, "platform" {
        /// An iPhone or iPad.
        Ios = "ios",
        /// Android.
        Android = "android",
        /// A browser on a desk.
        Web = "web",
        /// A browser on a phone.
        Mweb = "mweb",
        /// A desktop application.
        Pc = "pc",
    }

    /// What a member may do.
    Role, "role" {
        /// The one who may do all.
        Owner = "owner",
        /// May manage members and messages.
        Admin = "admin",
        /// May take part.
        Member = "member",
    }

    /// Who delivers offline pushes.
    Provider, "provider" {
        /// Apple.
        Apns = "apns",
        /// Google.
        Fcm = "fcm",
        /// Browsers.
        Webpush = "webpush",
        /// The business line's own address.
        Webhook = "webhook",
    }

    /// How users come into a group.
    Join, "join" {
        /// By themselves.
        Open = "open",
        /// When an admin agrees.
        Approval = "approval",
        /// When a member brings them in.
        Invite = "invite",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T>(all: &[T], names: &[&str])
    where
        T: Copy + fmt::Debug + fmt::Display + PartialEq + FromStr<Err = Refused> + Serialize + de::DeserializeOwned,
    {
        assert_eq!(all.len(), names.len());
        for (one, name) in all.iter().zip(names) {
            assert_eq!((one.to_string(), name.parse::<T>()), ((*name).to_owned(), Ok(*one)));
            let json = serde_json::to_string(one).unwrap();
            assert_eq!((json.clone(), serde_json::from_str::<T>(&json).unwrap()), (format!("\"{name}\""), *one));
        }
        let refused = "smell".parse::<T>().unwrap_err().to_string();
        assert!(refused.ends_with(&names.join(", ")), "{refused}");
        assert!(serde_json::from_str::<T>("\"smell\"").unwrap_err().to_string().contains("smell"));
    }

    #[test]
    fn every_name_is_written_and_read_as_itself() {
        check(ConversationKind::ALL, ConversationKind::NAMES);
        check(MessageType::ALL, MessageType::NAMES);
        check(Platform::ALL, Platform::NAMES);
        check(Role::ALL, Role::NAMES);
        check(Provider::ALL, Provider::NAMES);
        check(Join::ALL, Join::NAMES);
    }
}
