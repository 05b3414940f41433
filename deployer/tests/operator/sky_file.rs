//! Backup files as their documentation describes them, read and written without the program's own code.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// Keys with media type and value.
pub(crate) type Content = BTreeMap<String, (String, Vec<u8>)>;

/// A backup that holds these keys.
pub(crate) fn write(content: &Content, id: &str) -> Vec<u8> {
    let mut file = b"SKYBACK1".to_vec();
    let mut chain = [0_u8; 32];
    let mut number = 0_u32;
    let mut frame = |file: &mut Vec<u8>, kind: u8, body: &[u8]| {
        let mut head = vec![kind];
        head.extend(number.to_le_bytes());
        head.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        let check = Sha256::digest(&head);
        chain = Sha256::digest([&chain[..], &head, body].concat()).into();
        file.extend([&head[..], &check[..4], body, &chain].concat());
        number += 1;
    };
    let header = serde_json::json!({
        "format": 1, "ring": "made", "ring_id": "00", "id": id, "begun": 1_700_000_000
    });
    frame(&mut file, b'H', header.to_string().as_bytes());
    let mut arcs: Vec<BTreeMap<[u8; 20], Vec<u8>>> = vec![BTreeMap::new(); 16];
    for (key, (content_type, value)) in content {
        let point = *sky_chord::Id::hash(key.as_bytes()).as_bytes();
        let mut record = Vec::new();
        for text in [key, content_type] {
            record.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
            record.extend(text.as_bytes());
        }
        record.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
        record.extend(value);
        arcs[usize::from(point[0] >> 4)].insert(point, record);
    }
    let (mut bytes, mut blocks, mut digests) = (0, 0, Vec::new());
    for (arc, records) in (0_u8..).zip(&arcs) {
        let all: Vec<u8> = records.values().flatten().copied().collect();
        digests.extend(Sha256::digest(&all));
        let records: Vec<&Vec<u8>> = records.values().collect();
        let pieces: Vec<&[&Vec<u8>]> = match records.is_empty() {
            true => vec![&[]],
            false => records.chunks(50).collect(),
        };
        for (at, piece) in pieces.iter().enumerate() {
            // A restore does not look at the place, so any text does where the arc goes on.
            let place: &[u8] = if at + 1 == pieces.len() { b"" } else { b"k61" };
            let mut body = vec![arc];
            body.extend(u16::try_from(place.len()).unwrap().to_le_bytes());
            body.extend(place);
            body.extend(u32::try_from(piece.len()).unwrap().to_le_bytes());
            body.extend(piece.iter().flat_map(|record| record.iter()));
            frame(&mut file, b'B', &body);
            blocks += 1;
        }
    }
    for (_, value) in content.values() {
        bytes += value.len();
    }
    let trailer = serde_json::json!({
        "keys": content.len(), "bytes": bytes, "blocks": blocks, "content": hex(&Sha256::digest(digests))
    });
    frame(&mut file, b'T', trailer.to_string().as_bytes());
    file
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a complete backup holds, and its digest of that.
pub(crate) fn read(file: &[u8]) -> (Content, String) {
    let mut rest = file.strip_prefix(b"SKYBACK1").unwrap();
    let mut content = Content::new();
    loop {
        let (head, after) = rest.split_at(13);
        let length = u32::from_le_bytes(head[5..9].try_into().unwrap()) as usize;
        let (body, after) = after.split_at(length);
        rest = &after[32..];
        match head[0] {
            b'H' => {}
            b'B' => {
                let mut body = &body[1..];
                text(&mut body);
                for _ in 0..u32::from_le_bytes(take(&mut body, 4).try_into().unwrap()) {
                    let (key, content_type) = (text(&mut body), text(&mut body));
                    let length = u32::from_le_bytes(take(&mut body, 4).try_into().unwrap());
                    let value = take(&mut body, length as usize).to_vec();
                    assert!(content.insert(key, (content_type, value)).is_none(), "a key twice");
                }
            }
            b'T' => {
                let trailer: serde_json::Value = serde_json::from_slice(body).unwrap();
                assert_eq!(trailer["keys"], content.len());
                return (content, trailer["content"].as_str().unwrap().to_owned());
            }
            kind => panic!("a frame of kind {kind}"),
        }
    }
}

fn take<'a>(body: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (part, rest) = body.split_at(length);
    *body = rest;
    part
}

fn text(body: &mut &[u8]) -> String {
    let length = u16::from_le_bytes(take(body, 2).try_into().unwrap());
    String::from_utf8(take(body, usize::from(length)).to_vec()).unwrap()
}
