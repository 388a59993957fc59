//! Text from elsewhere made harmless for a terminal and for the reader's eye.
//!
//! Host names, process names and arguments are chosen by whoever runs them. Control characters could move the cursor
//! or colour the next line, and bidirectional overrides could show a name that is not the one meant (CVE-2021-42574).

use std::borrow::Cow;

/// Whether a character could change what stands around it, or is not seen at all.
fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Soft hyphen, Arabic letter mark, zero-width characters, direction marks.
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}'
            // Line and paragraph separators, bidirectional embeddings and overrides.
            | '\u{2028}'..='\u{202e}'
            // Invisible operators and bidirectional isolates.
            | '\u{2060}'..='\u{206f}'
            // Byte order mark, interlinear annotations.
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            // Tags.
            | '\u{e0000}'..='\u{e007f}')
}

/// `text` with everything invisible written out, as `\u{1b}` or `\n`.
pub fn sanitise(text: &str) -> Cow<'_, str> {
    // Most text is of characters that stand for themselves, which is seen without looking at each of them.
    let is_plain = text.bytes().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'));
    if is_plain || !text.contains(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_hostile(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_moves_the_cursor_or_turns_text_around_is_written_out() {
        for (text, expected) in [
            ("web1", "web1"),
            ("bücher-日本", "bücher-日本"),
            ("\u{1b}[2Jweb1", "\\u{1b}[2Jweb1"),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
            ("we\u{200b}b", "we\\u{200b}b"),
            ("\u{2066}x\u{2069}", "\\u{2066}x\\u{2069}"),
            ("\0\u{7f}", "\\u{0}\\u{7f}"),
        ] {
            assert_eq!(sanitise(text), expected);
        }
    }

    proptest! {
        #[test]
        fn nothing_hostile_is_left_and_nothing_else_is_changed(text in any::<String>()) {
            let safe = sanitise(&text);
            prop_assert!(!safe.contains(is_hostile));
            let kept: String = text.chars().filter(|c| !is_hostile(*c)).collect();
            if kept == text {
                prop_assert_eq!(safe, text.as_str());
            }
        }
    }
}
