//! Connections between agents: messages arrive, in order, at the node that is meant and at no other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sky_agent::config::Secret;
use sky_agent::metrics::Counters;
use sky_agent::rpc::Rpc;
use sky_chord::{
    Ballot, Body, CallId, Content, Event, Id, Message, NodeId, Peer, Register, RingId, Value,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// The peer side of an agent, on a port of its own.
struct Side {
    peer: Peer,
    rpc: Rpc,
    events: mpsc::Receiver<Event>,
    counters: Arc<Counters>,
}

fn node(position: u64) -> NodeId {
    NodeId { position: Id::small(position), incarnation: position }
}

async fn listen(address: &str) -> TcpListener {
    TcpListener::bind(address).await.unwrap()
}

impl Side {
    async fn new(position: u64, secret: Option<&str>) -> Self {
        Self::on(listen("127.0.0.1:0").await, position, secret)
    }

    fn on(listener: TcpListener, position: u64, secret: Option<&str>) -> Self {
        let address = listener.local_addr().unwrap().to_string();
        let peer = Peer { node: node(position), address: address.into() };
        let (events, incoming) = mpsc::channel(10_000);
        let secret = secret.map(|secret| Secret::new(secret.as_bytes()));
        let counters = Arc::<Counters>::default();
        let rpc = Rpc::new(peer.clone(), secret, events, Arc::clone(&counters));
        let server = rpc.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(server.clone().serve(stream));
            }
        });
        Self { peer, rpc, events: incoming, counters }
    }

    async fn next(&mut self) -> Event {
        timeout(PATIENCE, self.events.recv()).await.expect("an event comes").unwrap()
    }

    /// The next message, and who sent it.
    async fn message(&mut self) -> (NodeId, u64) {
        match self.next().await {
            Event::Receive { from, message } => (from.node, message.call.0),
            event => panic!("not a message: {event:?}"),
        }
    }

    async fn unreachable(&mut self) -> NodeId {
        match self.next().await {
            Event::Unreachable { node } => node,
            event => panic!("not unreachable: {event:?}"),
        }
    }
}

fn message(call: u64) -> Message {
    Message { call: CallId(call), body: Body::Ping { digest: call } }
}

/// Sends messages, after a first one that was lost, until the other side hears one of them. While an attempt
/// has just failed, messages are dropped: the protocol asks again, too.
async fn is_heard_again(one: &Side, peer: &Peer, other: &mut Side) {
    let asking = async {
        for call in 2.. {
            one.rpc.send(peer, &message(call));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        (from, call) = other.message() => assert!(from == node(1) && call >= 2),
        () = asking => {}
    }
}

#[tokio::test]
async fn messages_arrive_in_order_and_name_their_sender() {
    let (one, mut other) = (Side::new(1, Some("s")).await, Side::new(2, Some("s")).await);
    for call in 0..2000 {
        assert!(one.rpc.send(&other.peer, &message(call)));
    }
    for call in 0..2000 {
        assert_eq!(other.message().await, (node(1), call));
    }
}

#[tokio::test]
async fn another_node_at_the_address_does_not_get_the_message() {
    let (mut one, mut other) = (Side::new(1, None).await, Side::new(2, None).await);
    let meant = Peer { node: node(3), address: Arc::clone(&other.peer.address) };
    one.rpc.send(&meant, &message(1));
    assert_eq!(one.unreachable().await, node(3));
    one.rpc.send(&other.peer, &message(2));
    assert_eq!(
        other.message().await,
        (node(1), 2),
        "the first thing it hears is what was meant for it"
    );
}

#[tokio::test]
async fn a_node_that_comes_back_is_reached_again() {
    let mut one = Side::new(1, None).await;
    let listener = listen("127.0.0.1:0").await;
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let gone = Peer { node: node(2), address: address.as_str().into() };
    one.rpc.send(&gone, &message(1));
    assert_eq!(one.unreachable().await, node(2));
    let mut back = Side::on(listen(&address).await, 2, None);
    is_heard_again(&one, &gone, &mut back).await;
}

/// A listener whose backlog is full drops what asks for a connection, as a firewall or a partition does.
#[tokio::test]
async fn an_attempt_that_nobody_answers_is_given_up_and_made_anew() {
    let mut one = Side::new(1, None).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        filling.push(stream.unwrap());
    }
    let silent = Peer { node: node(2), address: address.to_string().into() };
    one.rpc.send(&silent, &message(1));
    assert_eq!(one.unreachable().await, node(2));
    drop(filling);
    let mut other = Side::on(listener, 2, None);
    is_heard_again(&one, &silent, &mut other).await;
}

#[tokio::test]
async fn agents_of_other_rings_and_with_other_secrets_are_kept_out() {
    let (mut one, mut other) = (Side::new(1, None).await, Side::new(2, None).await);
    one.rpc.set_ring(RingId(1));
    other.rpc.set_ring(RingId(2));
    one.rpc.send(&other.peer, &message(1));
    assert_eq!(one.unreachable().await, node(2));
    assert!(other.events.try_recv().is_err());

    let (mut one, mut other) = (Side::new(1, Some("a")).await, Side::new(2, Some("b")).await);
    one.rpc.send(&other.peer, &message(1));
    assert_eq!(one.unreachable().await, node(2));
    assert!(other.events.try_recv().is_err());
}

#[tokio::test]
async fn agents_that_found_two_rings_after_they_met_part_again() {
    let (mut one, mut other) = (Side::new(1, None).await, Side::new(2, None).await);
    one.rpc.send(&other.peer, &message(1));
    assert_eq!(other.message().await, (node(1), 1));
    one.rpc.set_ring(RingId(1));
    other.rpc.set_ring(RingId(2));
    assert_eq!(one.unreachable().await, node(2));
    assert!(other.events.try_recv().is_err());
}

#[tokio::test]
async fn an_agent_that_joins_the_ring_keeps_its_connections() {
    let (one, mut other) = (Side::new(1, None).await, Side::new(2, None).await);
    one.rpc.set_ring(RingId(1));
    one.rpc.send(&other.peer, &message(1));
    assert_eq!(other.message().await, (node(1), 1));
    other.rpc.set_ring(RingId(1));
    one.rpc.send(&other.peer, &message(2));
    assert_eq!(other.message().await, (node(1), 2));
}

#[tokio::test]
async fn a_queue_that_nobody_empties_has_an_end() {
    let one = Side::new(1, None).await;
    let silent = listen("127.0.0.1:0").await;
    let address = silent.local_addr().unwrap().to_string();
    let peer = Peer { node: node(2), address: address.as_str().into() };
    let with_value = |bytes: usize| {
        let value = Value { content_type: "".into(), bytes: vec![0; bytes].into(), ttl: None };
        let register = Register { value: Some(Content::Whole(value)), ..Register::ABSENT };
        Message { call: CallId(1), body: Body::Promised { accepted: Ballot::ZERO, register } }
    };
    let ordinary = with_value(60 << 10);
    let sent = (0..4000).take_while(|_| one.rpc.send(&peer, &ordinary)).count();
    assert!((500..4000).contains(&sent), "{sent}");
    // Large values have a queue of their own. That it is full says nothing of the node.
    let (large, dropped) = (with_value(1 << 20), || one.counters.messages_dropped.load(Relaxed));
    let before = dropped();
    assert!((0..400).all(|_| one.rpc.send(&peer, &large)));
    assert!((1..400).contains(&(dropped() - before)), "{}", dropped() - before);
}

#[tokio::test]
async fn join_addresses_are_asked_until_the_node_is_in() {
    let (mut one, other) = (Side::new(1, None).await, Side::new(2, None).await);
    other.rpc.set_ring(RingId(5));
    let nobody = listen("127.0.0.1:0").await.local_addr().unwrap().to_string();
    let (is_joined, joined) = watch::channel(false);
    let (trouble, mut troubles) = watch::channel(None);
    let addresses = vec![nobody];
    let alone = tokio::spawn(one.rpc.clone().join(addresses.clone(), joined.clone(), trouble));
    troubles.wait_for(|t| t.as_ref().is_some_and(|t| t.contains(&addresses[0]))).await.unwrap();
    alone.abort();

    let (trouble, troubles) = watch::channel(None);
    let port = other.peer.address.rsplit_once(':').unwrap().1;
    let addresses = vec![addresses[0].clone(), format!("localhost:{port}")];
    let joining = tokio::spawn(one.rpc.clone().join(addresses, joined, trouble));
    for _ in 0..2 {
        match one.next().await {
            Event::Contact { peer, ring } => {
                assert_eq!((peer, ring), (other.peer.clone(), Some(RingId(5))))
            }
            event => panic!("{event:?}"),
        }
    }
    assert_eq!(*troubles.borrow(), None, "one that answers is enough");
    is_joined.send_replace(true);
    timeout(PATIENCE, joining).await.expect("it stops").unwrap();
}

#[tokio::test]
async fn garbage_closes_the_connection_and_nothing_else() {
    let (one, mut other) = (Side::new(1, None).await, Side::new(2, None).await);
    let garbage: [&[u8]; 5] = [
        b"\0\0\0\0\0\0\0\0",
        b"\0sky\0\x02\xff\xff\xff\xff",
        b"\0sky\0\x02\0\0\0\x04abcd",
        b"\0sky\xff\xff",
        b"\0ky",
    ];
    for bytes in garbage {
        let mut stream = TcpStream::connect(&*other.peer.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A reset is as good an end as any.
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is closed").ok();
    }
    one.rpc.send(&other.peer, &message(1));
    assert_eq!(other.message().await, (node(1), 1));
}

#[tokio::test]
async fn an_older_agent_tells_a_newer_one_its_version() {
    let side = Side::new(1, None).await;
    let mut stream = TcpStream::connect(&*side.peer.address).await.unwrap();
    stream.write_all(b"\0sky\0\x09whatever a newer version says").await.unwrap();
    let mut answer = [0; 6];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("it answers").unwrap();
    assert_eq!(&answer, b"\0sky\0\x05");
}
