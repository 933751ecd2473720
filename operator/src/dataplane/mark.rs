//! The mark of a ChatCluster on its nodes: an empty function library whose name holds the cluster's UID.
//!
//! Libraries are kept on disk, replicated, and survive every command that removes keys. So a volume of another ChatCluster is known as
//! such before a single slot is assigned, and no key is needed whose partition could move away.

const PREFIX: &str = "kith_owner_";

/// The library's name for a cluster UID. Letters and digits stay, the rest becomes `_` plus its hexadecimal code, so that the UID can be read back.
pub fn name(uid: &str) -> String {
    let mut name = PREFIX.to_owned();
    for byte in uid.bytes() {
        if byte.is_ascii_alphanumeric() {
            name.push(char::from(byte));
        } else {
            let (high, low) = (byte >> 4, byte & 15);
            name.push('_');
            name.extend([high, low].map(|n| char::from_digit(u32::from(n), 16).unwrap_or('0')));
        }
    }
    name
}

/// The cluster UID of a library's name, if that is a mark.
pub fn owner(library: &str) -> Option<String> {
    let mut rest = library.strip_prefix(PREFIX)?.bytes();
    let mut uid = Vec::new();
    while let Some(byte) = rest.next() {
        if byte == b'_' {
            let code = [rest.next()?, rest.next()?];
            uid.push(u8::from_str_radix(std::str::from_utf8(&code).ok()?, 16).ok()?);
        } else {
            uid.push(byte);
        }
    }
    String::from_utf8(uid).ok()
}

/// The library's text.
pub fn code(uid: &str) -> String {
    let name = name(uid);
    format!(
        "#!lua name={name}\nserver.register_function{{function_name='{name}', callback=function() return 1 end, flags={{'no-writes'}}}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uid_is_read_back_from_the_mark() {
        for uid in ["5b0f7c1e-8a0e-4b65-9f0e-0c1a2b3c4d5e", "x_y.z", ""] {
            assert_eq!(owner(&name(uid)).as_deref(), Some(uid));
        }
        assert_eq!(owner("kith1"), None);
        assert_eq!(owner("kith_owner_a_zz"), None);
    }
}
