//! Keys in paths, as text that survives a URL, and places in key lists that clients send.

use std::borrow::Cow;

use sky_api::{Code, MAX_KEY_BYTES};
use sky_chord::{Cursor, Key};

use super::problem::Refused;

/// The key that a path names: `raw` is what follows `/kv/`, percent-encoded (RFC 3986). A `/` may be
/// written as it is or encoded; it makes no difference.
pub(super) fn decode(raw: &str) -> Result<Key, Refused> {
    named(&percent_decode(raw)?)
}

/// The key of this name.
pub(super) fn named(name: &str) -> Result<Key, Refused> {
    let refused = |why: &str| Err(Refused::new(Code::InvalidKey, why));
    match name {
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

/// The place that a client names.
pub(super) fn read_cursor(text: &str) -> Result<Cursor, Refused> {
    sky_api::cursor::read(text).ok_or_else(|| {
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
}
