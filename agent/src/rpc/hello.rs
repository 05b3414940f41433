//! The hello of two agents: who they are, which ring they belong to, and that both know its secret.
//!
//! ```text
//! connecting -> accepting   magic, version, Hello
//! accepting -> connecting   magic, version, its Hello with a proof, or a refusal
//! connecting -> accepting   its proof
//! accepting -> connecting   admitted, or a refusal
//! ```
//!
//! A proof is an HMAC-SHA-256 by the secret over the role and both hellos with their fresh nonces, so
//! it says nothing of the secret and fits no other connection. Magic and version stay as they are in
//! all versions.

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use sky_chord::{NodeId, Peer, RingId};
use tokio::io::{AsyncRead, AsyncWrite};

use super::frame::{Buffer, FrameError, Frames};
use crate::config::Secret;

/// The first bytes of a peer connection. No HTTP request begins with the first of them.
pub(super) const MAGIC: [u8; 4] = *b"\0sky";

/// The version of hello and messages that this agent speaks.
pub(super) const VERSION: u16 = 5;

/// A hello is short; whoever sends more is none of us.
const LONGEST: usize = 4096;

/// What an agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) peer: Peer,
    /// None before it has joined a ring.
    pub(super) ring: Option<RingId>,
    /// The node that is meant; none if whoever answers at this address will do.
    pub(super) meant: Option<NodeId>,
    nonce: [u8; 32],
}

impl Hello {
    pub(super) fn new(
        peer: Peer,
        ring: Option<RingId>,
        meant: Option<NodeId>,
    ) -> Result<Self, HelloError> {
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|error| HelloError::Io(error.into()))?;
        Ok(Self { peer, ring, meant, nonce })
    }
}

/// Why an agent does not want to speak with another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "they belong to different rings ({here} and {there}): point them to agents of one ring"
    )]
    OtherRing { here: RingId, there: RingId },
    #[error("they have different ring secrets: give both the same --secret-file")]
    WrongSecret,
    #[error("another node answers at this address: {0}")]
    NotMeant(NodeId),
    #[error("both are the same node: two agents may not run on copies of one data directory")]
    SameNode,
}

/// Why a hello came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    #[error("{0}")]
    Io(std::io::Error),
    #[error("it did not answer in time")]
    Slow,
    #[error("it is not a Sky agent")]
    NotAnAgent,
    #[error(
        "it speaks version {0} of the peer protocol, this agent {VERSION}: upgrade the older one"
    )]
    Version(u16),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<FrameError> for HelloError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => Self::Io(error),
            FrameError::TooLong(_) | FrameError::Malformed(_) => Self::NotAnAgent,
        }
    }
}

impl From<std::io::Error> for HelloError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

type Proof = [u8; 32];

fn prove(
    secret: Option<&Secret>,
    role: &str,
    from: &Hello,
    to: &Hello,
) -> Result<Hmac<Sha256>, HelloError> {
    let key = secret.map_or(&[][..], Secret::expose);
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| Refusal::WrongSecret)?;
    let said = postcard::to_stdvec(&(role, from, to)).map_err(FrameError::Malformed)?;
    mac.update(&said);
    Ok(mac)
}

const CONNECTING: &str = "sky connecting";
const ACCEPTING: &str = "sky accepting";

/// Whether agents of these rings may speak with each other; one without a ring may join the other's.
pub(super) fn check_ring(mine: Option<RingId>, theirs: Option<RingId>) -> Result<(), Refusal> {
    match (mine, theirs) {
        (Some(here), Some(there)) if here != there => Err(Refusal::OtherRing { here, there }),
        _ => Ok(()),
    }
}

async fn greet<S: AsyncWrite + Unpin>(
    stream: &mut S,
    content: &impl Serialize,
) -> Result<(), HelloError> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    let mut buffer = Buffer::behind(bytes);
    buffer.append(content)?;
    Ok(buffer.write_to(stream).await?)
}

async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    content: &impl Serialize,
) -> Result<(), HelloError> {
    let mut buffer = Buffer::default();
    buffer.append(content)?;
    Ok(buffer.write_to(stream).await?)
}

async fn check_version<S: AsyncRead + Unpin>(frames: &mut Frames<S>) -> Result<(), HelloError> {
    if frames.bytes().await? != MAGIC {
        return Err(HelloError::NotAnAgent);
    }
    match u16::from_be_bytes(frames.bytes().await?) {
        VERSION => Ok(()),
        other => Err(HelloError::Version(other)),
    }
}

/// Says hello first. Returns what the other said, once both are satisfied.
pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut Frames<S>,
    mine: Hello,
    secret: Option<&Secret>,
) -> Result<Hello, HelloError> {
    greet(frames.stream(), &mine).await?;
    check_version(frames).await?;
    let (theirs, proof): (Hello, Proof) = frames.next::<Result<_, Refusal>>(LONGEST).await??;
    check_ring(mine.ring, theirs.ring)?;
    if mine.meant.is_some_and(|meant| meant != theirs.peer.node) {
        return Err(Refusal::NotMeant(theirs.peer.node).into());
    }
    prove(secret, ACCEPTING, &theirs, &mine)?
        .verify_slice(&proof)
        .map_err(|_| Refusal::WrongSecret)?;
    let proof: Proof = prove(secret, CONNECTING, &mine, &theirs)?.finalize().into_bytes().into();
    send(frames.stream(), &proof).await?;
    frames.next::<Result<(), Refusal>>(LONGEST).await??;
    Ok(theirs)
}

/// Answers a hello. Returns what the other said, once both are satisfied.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut Frames<S>,
    mine: Hello,
    secret: Option<&Secret>,
) -> Result<Hello, HelloError> {
    let version = check_version(frames).await;
    if let Err(HelloError::Version(_)) = version {
        // The other side understands magic and version, whatever comes behind them.
        greet(frames.stream(), &()).await?;
    }
    version?;
    let theirs: Hello = frames.next(LONGEST).await?;
    let suits = if theirs.peer.node == mine.peer.node {
        Err(Refusal::SameNode)
    } else if theirs.meant.is_some_and(|meant| meant != mine.peer.node) {
        Err(Refusal::NotMeant(mine.peer.node))
    } else {
        check_ring(mine.ring, theirs.ring)
    };
    if let Err(refusal) = suits {
        greet(frames.stream(), &Err::<(Hello, Proof), _>(&refusal)).await?;
        return Err(refusal.into());
    }
    let proof: Proof = prove(secret, ACCEPTING, &mine, &theirs)?.finalize().into_bytes().into();
    greet(frames.stream(), &Ok::<_, Refusal>((&mine, proof))).await?;
    let proof: Proof = frames.next(LONGEST).await?;
    let verified = prove(secret, CONNECTING, &theirs, &mine)?
        .verify_slice(&proof)
        .map_err(|_| Refusal::WrongSecret);
    send(frames.stream(), &verified).await?;
    verified?;
    Ok(theirs)
}

#[cfg(test)]
mod tests {
    use sky_chord::Id;
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn hello(position: u64, ring: Option<u128>, meant: Option<u64>) -> Hello {
        let node = |position| NodeId { position: Id::small(position), incarnation: 1 };
        let peer = Peer { node: node(position), address: "127.0.0.1:1".into() };
        Hello::new(peer, ring.map(RingId), meant.map(node)).unwrap()
    }

    async fn meet(
        connecting: (Hello, Option<&str>),
        accepting: (Hello, Option<&str>),
    ) -> (Result<Hello, HelloError>, Result<Hello, HelloError>) {
        let (a, b) = tokio::io::duplex(64);
        let secret = |text: Option<&str>| text.map(|text| Secret::new(text.as_bytes()));
        let (mut a, mut b) = (Frames::new(a), Frames::new(b));
        let (for_a, for_b) = (secret(connecting.1), secret(accepting.1));
        // Each side hangs up when it is done, as a connection does.
        tokio::join!(
            async move { connect(&mut a, connecting.0, for_a.as_ref()).await },
            async move { accept(&mut b, accepting.0, for_b.as_ref()).await }
        )
    }

    #[tokio::test]
    async fn agents_of_one_ring_and_newcomers_are_welcome() {
        for (ours, theirs) in [(None, None), (Some(1), Some(1)), (None, Some(1)), (Some(1), None)] {
            let (a, b) = (hello(1, ours, Some(2)), hello(2, theirs, None));
            let (there, here) = meet((a.clone(), Some("s")), (b.clone(), Some("s"))).await;
            assert_eq!((there.unwrap(), here.unwrap()), (b, a));
        }
    }

    #[tokio::test]
    async fn both_sides_learn_why_they_do_not_fit() {
        let one = || hello(1, Some(1), Some(2));
        let other = || hello(2, Some(1), None);
        let cases = [
            ((one(), None), (hello(2, Some(9), None), None), "different rings"),
            ((one(), None), (hello(3, Some(1), None), None), "another node answers"),
            ((hello(2, None, None), None), (other(), None), "the same node"),
        ];
        for (connecting, accepting, reason) in cases {
            let (a, b) = meet(connecting, accepting).await;
            for error in [a.unwrap_err(), b.unwrap_err()] {
                assert!(error.to_string().contains(reason), "{error} / {reason}");
            }
        }
        for secrets in [(Some("a"), Some("b")), (Some("a"), None), (None, Some("b"))] {
            // The connecting side sees it first, and leaves.
            let (a, _) = meet((one(), secrets.0), (other(), secrets.1)).await;
            assert!(matches!(a, Err(HelloError::Refused(Refusal::WrongSecret))), "{a:?}");
        }
    }

    #[tokio::test]
    async fn a_proof_made_for_one_side_does_not_serve_the_other() {
        let (mine, theirs) = (hello(1, None, None), hello(2, None, None));
        let secret = Secret::new(b"s");
        let proof = |role, from, to| prove(Some(&secret), role, from, to).unwrap().finalize();
        assert!(proof(CONNECTING, &mine, &theirs) != proof(ACCEPTING, &mine, &theirs));
        assert!(proof(CONNECTING, &mine, &theirs) != proof(CONNECTING, &theirs, &mine));
    }

    #[tokio::test]
    async fn a_newer_agent_and_garbage_are_told_apart() {
        let cases = [(&b"\0sky\x00\x09whatever"[..], "version 9"), (b"\0nonsense", "not a Sky")];
        for (bytes, reason) in cases {
            let (a, mut b) = tokio::io::duplex(1024);
            b.write_all(bytes).await.unwrap();
            let error = accept(&mut Frames::new(a), hello(1, None, None), None).await.unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
