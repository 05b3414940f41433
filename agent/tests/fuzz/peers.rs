//! Bytes from a peer that may be anything: hellos and frames come to an end, without a panic and without
//! memory that was only announced; what is understood reads the same when it is said again. Part of the
//! unit tests, because nobody else can reach the decoder.
//!
//! `UPDATE_INPUTS=1 cargo test -p sky-agent --lib rpc::fuzz` makes the first inputs anew: needed when
//! messages change.

use std::path::PathBuf;

use sky_chord::{
    Ballot, Body, CallId, Condition, Config, Content, Id, Key, MemberEntry, MemberStatus, Message,
    NextHop, NodeId, Operation, Peer, RangeTag, Register, RequestId, RingId, ScanEntry, Subject,
    Value,
};
use tokio::io::{join, sink};
use tokio::runtime::Runtime;

use super::frame::{Buffer, Frame, FrameRef, Frames, LONGEST};
use super::hello::{self, Hello, Refusal};
use crate::config::Secret;
use crate::fuzz::{self, Target};

fn kept() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/inputs/peer")
}

fn node(position: u64) -> NodeId {
    NodeId { position: Id::small(position), incarnation: position }
}

fn peer(position: u64) -> Peer {
    Peer { node: node(position), address: format!("127.0.0.1:{position}").into() }
}

fn hello(position: u64) -> Hello {
    Hello::new(peer(position), Some(RingId(1)), None).unwrap()
}

/// What the first byte of an input says of the others.
mod kind {
    pub(super) const FRAMES: u8 = 0;
    /// The content of one frame, whose length is right.
    pub(super) const CONTENT: u8 = 1;
    pub(super) const ACCEPT: u8 = 2;
    pub(super) const CONNECT: u8 = 3;
    pub(super) const COUNT: u8 = 4;
}

struct Bytes(Runtime);

impl Target for Bytes {
    const NAME: &str = "peer";
    const INPUTS: usize = 20_000;
    /// Of what announces elements, postcard believes as much as there are bytes; a message is an element
    /// of up to some hundred bytes in memory, and it is held twice here.
    const MEMORY: (u64, u64) = (512 << 10, 1 << 10);

    fn take(&mut self, input: &[u8]) -> Vec<String> {
        let Some((kind, bytes)) = input.split_first() else { return Vec::new() };
        self.0.block_on(take(kind % kind::COUNT, bytes))
    }

    fn seams(_: &[u8]) -> Vec<usize> {
        vec![1]
    }
}

async fn take(kind: u8, bytes: &[u8]) -> Vec<String> {
    let framed;
    let bytes = if kind == kind::CONTENT {
        framed = [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
        &framed
    } else {
        bytes
    };
    let mut frames = Frames::new(join(bytes, sink()));
    let secret = Secret::new(b"secret");
    let error = match kind {
        kind::ACCEPT => hello::accept(&mut frames, hello(1), Some(&secret)).await.unwrap_err(),
        kind::CONNECT => hello::connect(&mut frames, hello(1), Some(&secret)).await.unwrap_err(),
        _ => {
            let mut saw = Vec::new();
            loop {
                let frame = match frames.next::<Frame>(LONGEST).await {
                    Ok(frame) => frame,
                    Err(error) => {
                        saw.push(fuzz::gist(error));
                        return saw;
                    }
                };
                saw.push(fuzz::gist(format_args!("{frame:?}")));
                let Frame::Message(message) = frame else { continue };
                let mut again = Buffer::default();
                again.append_frame(&FrameRef::Message(&message)).unwrap();
                let again = Frames::new(&again.whole()[..]).next::<Frame>(LONGEST).await;
                assert!(matches!(again, Ok(Frame::Message(same)) if same == message));
            }
        }
    };
    vec![fuzz::gist(error)]
}

#[test]
fn peers_may_send_any_bytes() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    fuzz::run(&mut Bytes(runtime), &kept());
}

/// Messages of most kinds, each with everything in it that it can hold.
fn messages() -> Vec<Body> {
    let at = RangeTag { hi: Id::MAX, epoch: 3 };
    let ballot = Ballot { epoch: 3, round: 2, node: node(1), boot: 1 };
    let value = Value { content_type: "text/plain".into(), bytes: "value".into(), ttl: None };
    let register = Register {
        version: ballot,
        value: Some(Content::Whole(value.clone())),
        ..Register::ABSENT
    };
    let (lo, hi, members, prev) = (Id::MIN, Id::MAX, vec![peer(1), peer(2)], vec![peer(3)]);
    let config =
        Config { lo, hi, epoch: 3, members, prev, forced: true, tie_breaker: Some(node(1)) };
    let key = Key::new("key");
    let condition = Condition::Version(vec![ballot]);
    let put = Operation::Put { key: key.clone(), value, condition };
    let entry = MemberEntry { peer: peer(1), version: 7, status: MemberStatus::Suspect };
    let digest = Some(9);
    let version = Some(ballot);
    let scan =
        ScanEntry { key: key.clone(), accepted: ballot, live: true, size: 5, digest, version };
    vec![
        Body::Ping { digest: 1 },
        Body::Gossip { entries: vec![entry; 3], reply: true },
        Body::Neighbours { predecessor: Some(peer(1)), successors: vec![peer(2)], joined: true },
        Body::FindStep { target: Id::small(5) },
        Body::Step { next: NextHop::Closer { candidates: vec![peer(1)] } },
        Body::Forward {
            request: RequestId::at(1, 2),
            stamp: 1,
            retry: true,
            sole: false,
            budget_ms: 3000,
            operation: Box::new(put),
        },
        Body::ConfigIs { config: Some(config.clone()), swept: true },
        Body::Prepare { at, key: key.clone(), ballot },
        Body::Promised { accepted: ballot, register: register.clone().outlined(0) },
        Body::Accept { at, key: key.clone(), ballot, register, next: Some(ballot) },
        Body::Refused(sky_chord::Refusal::Lacks),
        Body::Read { at, key: key.clone(), with_value: true },
        Body::Scanned { entries: vec![scan; 3], end: false },
        Body::Digest { at, prefix: vec![1, 2] },
        Body::Digested { sums: vec![(1, 2), (3, 4)] },
        Body::Tombstones { at, keys: vec![(key.clone(), ballot); 2] },
        Body::Watch {
            revision: 5,
            subjects: Some(vec![Subject::Key(key.clone()), Subject::Prefix("k".into())]),
            lease_ms: 5000,
        },
        Body::Watched { session: 1, revision: 5, hints: 2 },
        Body::Changed { session: 1, number: 2, keys: vec![(key, ballot); 2], more: true },
        Body::TombstonesHeld { held: vec![true, false] },
        Body::Clear { config: config.clone() },
        Body::SlotPromised { accepted: vec![None] },
        Body::Decided { configs: vec![config] },
    ]
}

#[test]
fn the_kept_inputs_are_of_these_messages() {
    let greeting = |kind: u8, content: &dyn Fn(&mut Buffer)| {
        let mut bytes = vec![kind];
        bytes.extend(hello::MAGIC);
        bytes.extend(hello::VERSION.to_be_bytes());
        let mut buffer = Buffer::behind(bytes);
        content(&mut buffer);
        buffer.whole()
    };
    // Nonces and proofs are others each time: these are only made anew.
    let proof = [7_u8; 32];
    let accept = greeting(kind::ACCEPT, &|bytes| {
        bytes.append(&hello(2)).unwrap();
        bytes.append(&proof).unwrap();
    });
    let connect = greeting(kind::CONNECT, &|bytes| {
        bytes.append(&Ok::<_, Refusal>((hello(2), proof))).unwrap();
    });
    let hellos = [("accept", accept), ("connect", connect)];

    let refused = greeting(kind::CONNECT, &|bytes| {
        bytes.append(&Err::<(Hello, [u8; 32]), _>(Refusal::SameNode)).unwrap();
    });
    let mut inputs = vec![("refused".to_owned(), refused)];
    let mut all = Buffer::behind(vec![kind::FRAMES]);
    all.append_frame(&FrameRef::Ring(RingId(7))).unwrap();
    for (i, body) in messages().into_iter().enumerate() {
        let message = Message { call: CallId(i as u64), body };
        all.append_frame(&FrameRef::Message(&message)).unwrap();
        let mut one = Buffer::default();
        one.append_frame(&FrameRef::Message(&message)).unwrap();
        let one = one.whole();
        inputs.push((format!("message-{i:02}"), [&[kind::CONTENT], &one[4..]].concat()));
    }
    inputs.push(("frames".to_owned(), all.whole()));

    if std::env::var_os("UPDATE_INPUTS").is_some() {
        std::fs::create_dir_all(kept()).unwrap();
        let hellos = hellos.iter().map(|(name, input)| (*name, input));
        for (name, input) in inputs.iter().map(|(name, input)| (&**name, input)).chain(hellos) {
            std::fs::write(kept().join(name), input).unwrap();
        }
    }
    for (name, input) in &inputs {
        let kept = std::fs::read(kept().join(name)).unwrap_or_default();
        assert!(kept == *input, "{name} is old: make the inputs anew with UPDATE_INPUTS=1");
    }
}
