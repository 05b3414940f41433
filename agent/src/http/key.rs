//! Keys in paths, and places in key lists, as text that survives a URL.

use std::borrow::Cow;

use sky_api::Code;
use sky_chord::{Cursor, Id, Key};

use super::problem::Refused;

/// The longest key, in bytes of UTF-8.
pub(super) const MAX_KEY_BYTES: usize = 1024;

/// The key that a path names: `raw` is what follows `/kv/`, percent-encoded (RFC 3986). A `/` may be
/// written as it is or encoded; it makes no difference.
pub(super) fn decode(raw: &str) -> Result<Key, Refused> {
    let name = percent_decode(raw)?;
    let refused = |why: &str| Err(Refused::new(Code::InvalidKey, why));
    match &*name {
        "" => {
            let hint = "A list of all keys is at /kv, without a slash at the end.";
            Err(Refused::new(Code::InvalidKey, "The key is empty.").hint(hint))
        }
        "." | ".." => {
            refused("The keys `.` and `..` cannot be used: many URL libraries drop them.")
        }
        name if name.len() > MAX_KEY_BYTES => refused("The key is longer than 1024 bytes."),
        name => Ok(Key::new(name)),
    }
}

fn percent_decode(raw: &str) -> Result<Cow<'_, str>, Refused> {
    if !raw.contains('%') {
        return Ok(raw.into());
    }
    let invalid = |why: &str| {
        Refused::new(Code::InvalidKey, why).hint("Percent-encode the UTF-8 bytes of the key.")
    };
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let digits = rest.split_at_checked(2).and_then(|(pair, tail)| {
                rest = tail;
                Some(hex_digit(pair[0])? << 4 | hex_digit(pair[1])?)
            });
            bytes.push(digits.ok_or_else(|| {
                invalid("The key is not percent-encoded: a `%` lacks its two hexadecimal digits.")
            })?);
        } else {
            bytes.push(*first);
        }
    }
    match String::from_utf8(bytes) {
        Ok(name) => Ok(name.into()),
        Err(_) => Err(invalid("The key is not UTF-8.")),
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// Writes bytes as two hexadecimal digits each.
pub(super) fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

fn read_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|pair| Some(hex_digit(pair[0])? << 4 | hex_digit(pair[1])?)).collect()
}

/// The opaque text of a place in a key list.
pub(super) fn cursor_text(cursor: &Cursor) -> String {
    let mut text = String::new();
    match cursor {
        Cursor::AfterKey(key) => {
            text.push('k');
            push_hex(&mut text, key.name().as_bytes());
        }
        Cursor::AfterPoint(point) => {
            text.push('p');
            push_hex(&mut text, point.as_bytes());
        }
    }
    text
}

/// Reads what [`cursor_text`] wrote.
pub(super) fn read_cursor(text: &str) -> Result<Cursor, Refused> {
    let cursor = text.split_at_checked(1).and_then(|(kind, rest)| {
        let bytes = read_hex(rest)?;
        match kind {
            "k" if bytes.len() <= MAX_KEY_BYTES => {
                Some(Cursor::AfterKey(Key::new(str::from_utf8(&bytes).ok()?)))
            }
            "p" => Some(Cursor::AfterPoint(Id::from_bytes(bytes.try_into().ok()?))),
            _ => None,
        }
    });
    cursor.ok_or_else(|| {
        Refused::new(Code::BadRequest, "The cursor is not one that this list gave out.")
            .hint("Pass the `cursor` of the page before as it is, or none for the first page.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_utf8_can_be_a_key() {
        for (raw, name) in [
            ("plain", "plain"),
            ("a/b%2fc", "a/b/c"),
            ("/", "/"),
            ("%E2%98%81%ef%b8%8f", "☁️"),
            ("100%25", "100%"),
            ("a+b%20c", "a+b c"),
            ("%2E%2e%2e", "..."),
            ("%00", "\0"),
        ] {
            assert_eq!(decode(raw).unwrap().name(), name, "{raw}");
        }
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        let long = "x".repeat(MAX_KEY_BYTES + 1);
        for raw in ["", ".", "..", "%2e", "%2E%2e", "%", "%4", "%zz", "%+1", "%ff", "%C3", &long] {
            assert_eq!(decode(raw).unwrap_err().code(), Code::InvalidKey, "{raw}");
        }
        assert!(decode(&long[1..]).is_ok());
    }

    #[test]
    fn cursors_are_read_back() {
        for cursor in [Cursor::AfterKey(Key::new("a/ü?")), Cursor::AfterPoint(Id::hash(b"x"))] {
            assert_eq!(read_cursor(&cursor_text(&cursor)).unwrap(), cursor);
        }
        for text in ["", "k0", "kfg", "kff", "p00", "x00", "é", "p"] {
            assert_eq!(read_cursor(text).unwrap_err().code(), Code::BadRequest, "{text}");
        }
    }
}
