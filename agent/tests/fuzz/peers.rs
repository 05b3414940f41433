//! Bytes from a peer that may be anything: hellos and frames come to an end, without a panic and without
//! more memory than there were bytes. Part of the unit tests, because nobody else can reach the decoder.
//!
//! `.ci/fuzz peer 3600` goes on for an hour, guided by the code that is reached.
//!
//! `UPDATE_CORPUS=1 cargo test -p sky-agent --lib rpc::fuzz` makes the first inputs anew.

use std::path::PathBuf;

use rustix::process::{Resource, Rlimit, setrlimit};
use sky_chord::{
    Ballot, Body, CallId, Condition, Config, Id, Key, MemberEntry, MemberStatus, Message, NextHop,
    NodeId, Operation, Peer, RangeTag, Register, RequestId, RingId, ScanEntry, Value,
};
use tokio::io::{join, sink};

use super::frame::{self, Frame, FrameRef, Frames, LONGEST};
use super::hello::{self, Hello, Refusal};
use crate::config::Secret;

/// Memory of the whole test program: a length that is believed before its bytes are there needs more.
const MEMORY: u64 = 2 << 30;

fn node(position: u64) -> NodeId {
    NodeId { position: Id::small(position), incarnation: position }
}

fn peer(position: u64) -> Peer {
    Peer { node: node(position), address: format!("127.0.0.1:{position}").into() }
}

fn hello(position: u64) -> Hello {
    Hello::new(peer(position), Some(RingId(1)), None).unwrap()
}

/// What is done with the bytes: the first of them says what they are.
async fn take(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    let mut frames = Frames::new(join(bytes, sink()));
    let secret = Secret::new(b"secret");
    match kind % 3 {
        0 => {
            while let Ok(frame) = frames.next::<Frame>(LONGEST).await {
                let Frame::Message(message) = frame else { continue };
                let mut again = Vec::new();
                frame::append(&mut again, &FrameRef::Message(&message)).unwrap();
                let again = Frames::new(&again[..]).next::<Frame>(LONGEST).await;
                assert!(matches!(again, Ok(Frame::Message(same)) if same == message));
            }
        }
        1 => drop(hello::accept(&mut frames, hello(1), Some(&secret)).await.unwrap_err()),
        _ => drop(hello::connect(&mut frames, hello(1), Some(&secret)).await.unwrap_err()),
    }
}

#[test]
fn peer_fuzz() {
    let limit = Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
    setrlimit(Resource::As, limit).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    bolero::check!().for_each(|input: &[u8]| runtime.block_on(take(input)));
}

/// Messages of most kinds, each with everything in it that it can hold.
fn messages() -> Vec<Body> {
    let at = RangeTag { hi: Id::MAX, epoch: 3 };
    let ballot = Ballot { epoch: 3, round: 2, node: node(1), boot: 1 };
    let value = Value { content_type: "text/plain".into(), bytes: "value".into() };
    let register = Register { version: ballot, value: Some(value.clone()), ..Register::ABSENT };
    let (lo, hi, members, prev) = (Id::MIN, Id::MAX, vec![peer(1), peer(2)], vec![peer(3)]);
    let config = Config { lo, hi, epoch: 3, members, prev };
    let key = Key::new("key");
    let condition = Condition::Version(vec![ballot]);
    let put = Operation::Put { key: key.clone(), value, condition };
    let entry = MemberEntry { peer: peer(1), version: 7, status: MemberStatus::Suspect };
    let scan = ScanEntry { key: key.clone(), accepted: ballot, live: true, size: 5 };
    vec![
        Body::Ping { digest: 1 },
        Body::Gossip { entries: vec![entry; 3], reply: true },
        Body::Neighbours { predecessor: Some(peer(1)), successors: vec![peer(2)], joined: true },
        Body::FindStep { target: Id::small(5) },
        Body::Step { next: NextHop::Closer { candidates: vec![peer(1)] } },
        Body::Forward {
            request: RequestId::at(1, 2),
            retry: true,
            budget_ms: 3000,
            operation: Box::new(put),
        },
        Body::ConfigIs { config: Some(config.clone()), swept: true },
        Body::Prepare { at, key: key.clone(), ballot },
        Body::Promised { accepted: ballot, register: register.clone() },
        Body::Accept { at, key: key.clone(), ballot, register, next: Some(ballot) },
        Body::Read { at, key, with_value: true },
        Body::Scanned { entries: vec![scan; 3], end: false },
        Body::Decided { configs: vec![config] },
    ]
}

#[test]
fn the_kept_inputs_are_understood() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/__fuzz__/rpc__fuzz__peer/corpus");
    let frames = |kind: u8, parts: &[&dyn Fn(&mut Vec<u8>)]| {
        let mut bytes = vec![kind];
        parts.iter().for_each(|part| part(&mut bytes));
        bytes
    };
    let greeting = |bytes: &mut Vec<u8>| {
        bytes.extend(hello::MAGIC);
        bytes.extend(hello::VERSION.to_be_bytes());
    };
    let proof = |bytes: &mut Vec<u8>| frame::append(bytes, &[7_u8; 32]).unwrap();
    let mut inputs = vec![
        (
            "ring".to_owned(),
            frames(0, &[&|b| frame::append(b, &FrameRef::Ring(RingId(7))).unwrap()]),
        ),
        (
            "accept".to_owned(),
            frames(1, &[&greeting, &|b| frame::append(b, &hello(2)).unwrap(), &proof]),
        ),
        (
            "connect".to_owned(),
            frames(
                2,
                &[&greeting, &|b| {
                    frame::append(b, &Ok::<_, Refusal>((hello(2), [7_u8; 32]))).unwrap();
                }],
            ),
        ),
        (
            "refused".to_owned(),
            frames(
                2,
                &[&greeting, &|b| {
                    frame::append(b, &Err::<(Hello, [u8; 32]), _>(Refusal::SameNode)).unwrap();
                }],
            ),
        ),
    ];
    for (i, body) in messages().into_iter().enumerate() {
        let message = Message { call: CallId(i as u64), body };
        let append = |b: &mut Vec<u8>| frame::append(b, &FrameRef::Message(&message)).unwrap();
        inputs.push((format!("message-{i:02}"), frames(0, &[&append])));
    }
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        for (name, input) in &inputs {
            std::fs::write(folder.join(name), input).unwrap();
        }
    }
    // Everything but nonces is the same each time: a kept input of old messages is found.
    for (name, input) in inputs.iter().filter(|(_, input)| input[0] == 0) {
        let kept = std::fs::read(folder.join(name)).unwrap_or_default();
        assert!(kept == *input, "{name} is old: make the inputs anew with UPDATE_CORPUS=1");
    }
}
