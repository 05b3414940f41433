//! Fairness between clients when there is more to do than can be done: what one client asks for must not
//! take everything from the others.
//!
//! [`Shares`] divides what is scarce, memory and places, by a dynamic threshold (Choudhury and Hahne,
//! "Dynamic queue length thresholds for shared-memory packet switches", IEEE/ACM ToN 1998): who holds as
//! much as is free gets no more. A client alone gets half, n of them an (n + 1)th each, and there is always
//! something left for one who comes new. [`Turns`] serves those who wait in turn, client by client.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Who asks for something: the machine that a request came from, or this agent itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client(Option<IpAddr>);

impl From<IpAddr> for Client {
    /// Of IPv6 only the network counts (64 bits, RFC 4291): a machine has as many addresses there as it likes.
    fn from(address: IpAddr) -> Self {
        Self(Some(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
            address => address,
        }))
    }
}

/// Something scarce that clients share, counted in units.
#[derive(Debug)]
pub struct Shares(Mutex<Divided>);

#[derive(Debug)]
struct Divided {
    free: usize,
    held: BTreeMap<Client, usize>,
}

/// What a client holds of it. Given back when dropped.
#[derive(Debug)]
pub struct Share {
    of: Arc<Shares>,
    client: Client,
    units: usize,
}

impl Shares {
    /// So many units, all of them free.
    pub fn new(units: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Divided { free: units, held: BTreeMap::new() })))
    }

    /// Some more units for a client; none if it would hold more than is free now.
    pub fn take(self: &Arc<Self>, client: Client, units: usize) -> Option<Share> {
        let mut divided = self.divided();
        let held = divided.held.get(&client).copied().unwrap_or_default();
        if held.saturating_add(units) > divided.free {
            return None;
        }
        divided.free -= units;
        *divided.held.entry(client).or_default() += units;
        Some(Share { of: Arc::clone(self), client, units })
    }

    fn divided(&self) -> MutexGuard<'_, Divided> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut divided = self.of.divided();
        divided.free += self.units;
        if let Some(held) = divided.held.get_mut(&self.client) {
            *held -= self.units;
            if *held == 0 {
                divided.held.remove(&self.client);
            }
        }
    }
}

/// What clients wait for, each in a queue of its own.
#[derive(Debug)]
pub struct Turns<T> {
    waiting: Mutex<Waiting<T>>,
    arrived: Notify,
}

#[derive(Debug)]
struct Waiting<T> {
    /// No queue is empty.
    queues: BTreeMap<Client, VecDeque<T>>,
    /// Whose turn it was last.
    last: Client,
    is_closed: bool,
}

/// Takes what waits. When it is dropped, nothing more is let in, and what waits is dropped.
#[derive(Debug)]
pub struct Taker<T>(Arc<Turns<T>>);

impl<T> Turns<T> {
    /// Empty queues, and who takes from them.
    pub fn new() -> (Arc<Self>, Taker<T>) {
        let queues = BTreeMap::new();
        let waiting = Waiting { queues, last: Client::default(), is_closed: false };
        let turns = Arc::new(Self { waiting: Mutex::new(waiting), arrived: Notify::new() });
        (Arc::clone(&turns), Taker(turns))
    }

    /// Puts something at the end of a client's queue. False if nobody takes it any more.
    pub fn push(&self, client: Client, item: T) -> bool {
        let mut waiting = self.waiting();
        if waiting.is_closed {
            return false;
        }
        waiting.queues.entry(client).or_default().push_back(item);
        drop(waiting);
        self.arrived.notify_one();
        true
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Taker<T> {
    /// The first in the queue of the client whose turn it is; none if nobody waits.
    pub fn try_next(&self) -> Option<T> {
        let mut waiting = self.0.waiting();
        let mut after = waiting.queues.range((Excluded(waiting.last), Unbounded));
        let next = after.next().or_else(|| waiting.queues.first_key_value());
        let client = *next?.0;
        waiting.last = client;
        let queue = waiting.queues.get_mut(&client)?;
        let item = queue.pop_front();
        if queue.is_empty() {
            waiting.queues.remove(&client);
        }
        item
    }

    /// The same, as soon as somebody waits. Nothing is lost if the future is dropped.
    pub async fn next(&self) -> T {
        loop {
            if let Some(item) = self.try_next() {
                return item;
            }
            self.0.arrived.notified().await;
        }
    }
}

impl<T> Drop for Taker<T> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        waiting.is_closed = true;
        // What is dropped may call back.
        let queues = std::mem::take(&mut waiting.queues);
        drop(waiting);
        drop(queues);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> Client {
        IpAddr::from([10, 0, 0, number]).into()
    }

    #[test]
    fn one_client_gets_half_and_there_is_always_something_for_the_next() {
        let places = Shares::new(96);
        let mut held = Vec::new();
        for number in 0..3 {
            while let Some(place) = places.take(client(number), 1) {
                held.push((number, place));
            }
        }
        let of = |number| held.iter().filter(|(holder, _)| *holder == number).count();
        assert_eq!([of(0), of(1), of(2)], [48, 24, 12]);
        // The first gives some back: the others may take it until they hold as much as is free.
        held.retain({
            let mut kept = 0;
            move |(number, _)| {
                *number != 0 || {
                    kept += 1;
                    kept <= 12
                }
            }
        });
        for _ in 0..2 {
            for number in 1..3 {
                while let Some(place) = places.take(client(number), 1) {
                    held.push((number, place));
                }
            }
        }
        let of = |number| held.iter().filter(|(holder, _)| *holder == number).count();
        assert_eq!([of(0), of(1), of(2)], [12, 36, 24]);
        held.clear();
        assert!(places.take(client(9), 96).is_some(), "everything was given back");
        assert!(places.take(client(9), 97).is_none(), "there is not as much");
    }

    #[test]
    fn who_asks_a_lot_waits_behind_himself() {
        let (turns, taker) = Turns::new();
        for number in 0..3 {
            assert!(turns.push(client(1), (1, number)));
        }
        assert!(turns.push(client(2), (2, 0)));
        assert!(turns.push(Client::default(), (0, 0)));
        let order: Vec<_> = std::iter::from_fn(|| taker.try_next()).collect();
        assert_eq!(order, [(1, 0), (2, 0), (0, 0), (1, 1), (1, 2)]);
        assert!(turns.push(client(1), (1, 3)));
        drop(taker);
        assert!(!turns.push(client(1), (1, 4)));
    }

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let of = |text: &str| Client::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), client(1));
        assert_ne!(client(1), client(2));
    }
}
