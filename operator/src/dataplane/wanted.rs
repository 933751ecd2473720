//! How many replicas must hold a write before it is acknowledged, told on each primary: a function library that says nothing else.
//!
//! `storage` asks with every group of writes, so what counts changes at one point in the order of writes, for all its instances at once. The
//! engine's own setting `min-replicas-to-write` says the same, but may be read only together with the engine's secrets.

/// Name of the library and of its function, which `storage` calls.
pub const NAME: &str = kith_kit::valkey::WANTED;
/// More than a ChatCluster may ask for.
const MOST: u32 = 16;

/// The library's text.
pub fn code(replicas: u32) -> String {
    format!(
        "#!lua name={NAME}\nserver.register_function{{function_name='{NAME}', callback=function() return {replicas} end, flags={{'no-writes'}}}}\n"
    )
}

/// What the libraries of a node say; none when it was never told, or its text is not the operator's.
pub fn told(libraries: &[(String, Option<String>)]) -> Option<u32> {
    let (_, text) = libraries.iter().find(|(name, _)| name == NAME)?;
    (0..=MOST).find(|replicas| text.as_deref() == Some(&code(*replicas)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_read_back_and_nothing_else_counts() {
        for replicas in 0..=5 {
            let libraries = [("kith1".to_owned(), None), (NAME.to_owned(), Some(code(replicas)))];
            assert_eq!(told(&libraries), Some(replicas));
        }
        assert_eq!(told(&[(NAME.to_owned(), Some("#!lua name=kith_wanted\n".to_owned()))]), None);
        assert_eq!(told(&[]), None);
    }
}
