//! What a text that a user gives is: blank or not, a reaction or not. Asked at the doors and by storage, so that both say the same.

use std::borrow::Cow;

use unicode_properties::{EmojiStatus, GeneralCategory, UnicodeEmoji, UnicodeGeneralCategory};

use crate::Refused;

/// An emoji with all its joiners and modifiers, in bytes.
const MAX_EMOJI_BYTES: usize = 64;
/// A shortcode, in bytes.
const MAX_SHORTCODE_BYTES: usize = 32;

/// Asks for the coloured form of a character that has two; says nothing else.
const EMOJI_STYLE: char = '\u{FE0F}';
const JOINER: char = '\u{200D}';
const KEYCAP: char = '\u{20E3}';
const TAGS: std::ops::RangeInclusive<char> = '\u{E0020}'..='\u{E007E}';
const END_OF_TAGS: char = '\u{E007F}';
const SKIN_TONES: std::ops::RangeInclusive<char> = '\u{1F3FB}'..='\u{1F3FF}';
const REGIONAL: std::ops::RangeInclusive<char> = '\u{1F1E6}'..='\u{1F1FF}';

/// Whether a text shows nothing: white space, and characters that have no form of their own.
pub fn is_blank(text: &str) -> bool {
    text.chars().all(shows_nothing)
}

fn shows_nothing(c: char) -> bool {
    // Letters and signs that are empty by design; variation selectors change the character before them.
    let empty = matches!(c,
        '\u{034F}' | '\u{115F}' | '\u{1160}' | '\u{17B4}' | '\u{17B5}' | '\u{180B}'..='\u{180F}' | '\u{2800}' | '\u{3164}'
        | '\u{FE00}'..='\u{FE0F}' | '\u{FFA0}' | '\u{E0000}'..='\u{E0FFF}');
    empty
        || c.is_whitespace()
        || matches!(
            c.general_category(),
            GeneralCategory::Control
                | GeneralCategory::Format
                | GeneralCategory::SpaceSeparator
                | GeneralCategory::LineSeparator
                | GeneralCategory::ParagraphSeparator
                | GeneralCategory::Unassigned
        )
}

/// A reaction as it is kept: one emoji without U+FE0F, or a shortcode `[a-z0-9_+-]{1,32}`.
pub fn reaction(given: &str) -> Result<Cow<'_, str>, Refused> {
    if is_shortcode(given) {
        return Ok(Cow::Borrowed(given));
    }
    if given.len() <= MAX_EMOJI_BYTES {
        let kept =
            if given.contains(EMOJI_STYLE) { Cow::Owned(given.replace(EMOJI_STYLE, "")) } else { Cow::Borrowed(given) };
        if is_emoji(&kept) {
            return Ok(kept);
        }
    }
    Err(Refused::new(format!("emoji: one emoji, or a shortcode of 1 to {MAX_SHORTCODE_BYTES} of a-z 0-9 _ + -")))
}

fn is_shortcode(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'+' | b'-');
    (1..=MAX_SHORTCODE_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

/// Whether this is one emoji, in the grammar of UTS #51 (1.4.9) without U+FE0F: a keycap, or elements with joiners between them. Each is
/// one extended grapheme cluster. What a later version of Unicode joins is taken too.
fn is_emoji(text: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    if let [key, KEYCAP] = chars[..] {
        return key.is_ascii_digit() || matches!(key, '#' | '*');
    }
    !chars.is_empty() && chars.split(|c| *c == JOINER).all(is_element)
}

/// A flag of two letters, or a pictograph with a skin tone or the tags of a region's flag.
fn is_element(chars: &[char]) -> bool {
    match chars {
        [a, b] if REGIONAL.contains(a) => REGIONAL.contains(b),
        [base, rest @ ..] if is_pictograph(*base) => match rest {
            [] => true,
            [tone] if SKIN_TONES.contains(tone) => true,
            [tags @ .., END_OF_TAGS] => !tags.is_empty() && tags.iter().all(|c| TAGS.contains(c)),
            _ => false,
        },
        _ => false,
    }
}

fn is_pictograph(c: char) -> bool {
    // Digits, # and * are emoji only as keycaps, and halves of flags are none.
    !c.is_ascii()
        && !REGIONAL.contains(&c)
        && !matches!(c.emoji_status(), EmojiStatus::NonEmoji | EmojiStatus::NonEmojiButEmojiComponent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_of_blanks_only_is_blank() {
        for blank in [
            "",
            " ",
            "\t\r\n",
            "\u{a0}\u{3000}\u{2003}",
            "\u{200b}",
            "\u{200b}\u{200c}\u{200d}\u{2060}\u{feff}",
            "\u{ad}",
            "\u{202e}\u{202c}",
            "\u{2800}",
            "\u{3164}",
            "\u{115f}\u{1160}\u{ffa0}",
            "\u{fe0f}",
            "\u{e0001}\u{e0020}",
            "\u{180e}",
            "\0\u{7f}\u{85}",
            "\u{2028}\u{2029}",
            "\u{61c}",
            "\u{34f}",
        ] {
            assert!(is_blank(blank), "{blank:?}");
        }
        for text in ["a", " . ", "\u{200b}x", "👍", "é", "字", "ا", "\u{301}a", "0"] {
            assert!(!is_blank(text), "{text:?}");
        }
    }

    #[test]
    fn a_reaction_is_one_emoji_or_a_shortcode() {
        for good in [
            "👍",
            "👍🏽",
            "❤",
            "☺",
            "©",
            "🏻",
            "👨‍👩‍👧‍👦",
            "🏳‍🌈",
            "🤷🏽‍♀",
            "👩‍❤‍💋‍👩",
            "🇫🇷",
            "🏴\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
            "1\u{20e3}",
            "#\u{20e3}",
            "❤‍🔥",
            "🫠",
            "thumbsup",
            "+1",
            "-1",
            "100",
            "a_b",
            "1",
        ] {
            assert_eq!(reaction(good).as_deref(), Ok(good), "{good}");
        }
        for bad in [
            "",
            " ",
            "👍👍",
            "👍 ",
            "a👍",
            "👍a",
            "hello world",
            "Thumbs",
            "1\u{20e3}1\u{20e3}",
            "🇫",
            "🇫🇷🇩🇪",
            "🇫👍",
            "\u{200d}",
            "👍\u{200d}",
            "\u{200d}👍",
            "👍\u{200b}",
            "\u{fe0f}",
            "\u{20e3}",
            "a\u{20e3}",
            "👍\u{20e3}",
            "é",
            "字",
            "\0",
            "a/b",
            ".",
            "1\u{200d}2",
            "👍\u{fe0e}",
            "👍\u{301}",
            "🏴\u{e0067}",
            &"a".repeat(33),
            &"👍\u{200d}".repeat(20),
        ] {
            let error = reaction(bad).unwrap_err();
            assert!(error.to_string().starts_with("emoji: "), "{bad:?}: {error}");
        }
    }

    #[test]
    fn two_spellings_of_an_emoji_are_one_reaction() {
        for (given, kept) in [("❤\u{fe0f}", "❤"), ("1\u{fe0f}\u{20e3}", "1\u{20e3}"), ("🏳\u{fe0f}‍🌈", "🏳‍🌈")]
        {
            assert_eq!(reaction(given).unwrap(), kept);
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_is_a_reaction_that_stays_as_it_is(given in "\\PC{0,6}|[👍🏽\u{200d}\u{fe0f}❤1\u{20e3}🇫🇷]{0,8}") {
            if let Ok(kept) = reaction(&given) {
                prop_assert!(!kept.contains(EMOJI_STYLE) && !is_blank(&kept));
                prop_assert_eq!(reaction(&kept).unwrap(), kept.clone());
            }
        }
    }
}
