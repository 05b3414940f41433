//! Places in key lists as text that survives a URL. To clients it is opaque; programs of this workspace
//! may also make one, to begin anywhere on the circle.

use std::fmt::Write;

use sky_chord::{Cursor, Id, Key};

use crate::MAX_KEY_BYTES;

/// The text of a place.
pub fn text(cursor: &Cursor) -> String {
    let (kind, bytes): (char, &[u8]) = match cursor {
        Cursor::AfterKey(key) => ('k', key.name().as_bytes()),
        Cursor::AfterPoint(point) => ('p', point.as_bytes()),
    };
    let mut text = String::with_capacity(1 + 2 * bytes.len());
    text.push(kind);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Reads what [`text`] wrote; none if it is something else.
pub fn read(text: &str) -> Option<Cursor> {
    let (kind, rest) = text.split_at_checked(1)?;
    let bytes = read_hex(rest)?;
    match kind {
        "k" if bytes.len() <= MAX_KEY_BYTES => {
            Some(Cursor::AfterKey(Key::new(str::from_utf8(&bytes).ok()?)))
        }
        "p" => Some(Cursor::AfterPoint(Id::from_bytes(bytes.try_into().ok()?))),
        _ => None,
    }
}

fn read_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_back() {
        for cursor in [Cursor::AfterKey(Key::new("a/ü?")), Cursor::AfterPoint(Id::hash(b"x"))] {
            assert_eq!(read(&text(&cursor)), Some(cursor));
        }
        for text in ["", "k0", "kfg", "kff", "p00", "x00", "é", "p", "k+1"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
