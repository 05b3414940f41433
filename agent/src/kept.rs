//! The latest of what happens, numbered from 1 and kept for readers that come again.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// What comes next for a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next<T> {
    /// This, under its number.
    Item(u64, T),
    /// So many are not kept any more. The reader goes on after the number `up_to`.
    Missed {
        /// How many.
        count: u64,
        /// The number of the last one.
        up_to: u64,
    },
    /// Nothing yet.
    Nothing,
}

/// The latest items, written by one and read by many.
#[derive(Debug)]
pub struct Kept<T> {
    items: Mutex<Items<T>>,
    /// The number of the last one.
    last: watch::Sender<u64>,
    most: usize,
    most_bytes: usize,
}

#[derive(Debug)]
struct Items<T> {
    /// With the size of what they refer to.
    kept: VecDeque<(usize, T)>,
    bytes: usize,
    last: u64,
}

impl<T: Clone> Kept<T> {
    /// Keeps so many items, and fewer if they refer to more than so many bytes.
    pub fn new(most: usize, most_bytes: usize) -> Self {
        let items = Items { kept: VecDeque::new(), bytes: 0, last: 0 };
        Self { items: Mutex::new(items), last: watch::Sender::new(0), most, most_bytes }
    }

    fn items(&self) -> MutexGuard<'_, Items<T>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one that refers to so many bytes, and forgets the oldest while there is too much.
    pub fn push(&self, item: T, bytes: usize) {
        {
            let mut items = self.items();
            items.kept.push_back((bytes, item));
            items.bytes += bytes;
            items.last += 1;
            while items.kept.len() > self.most || items.bytes > self.most_bytes {
                let Some((bytes, _)) = items.kept.pop_front() else { break };
                items.bytes -= bytes;
            }
        }
        self.last.send_modify(|last| *last += 1);
    }

    /// Changes with each item to its number.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// What follows the item of this number.
    pub fn after(&self, number: u64) -> Next<T> {
        let items = self.items();
        let first = items.last + 1 - items.kept.len() as u64;
        if number + 1 < first {
            return Next::Missed { count: first - 1 - number, up_to: first - 1 };
        }
        let index = usize::try_from(number + 1 - first).unwrap_or(usize::MAX);
        match items.kept.get(index) {
            Some((_, item)) => Next::Item(number + 1, item.clone()),
            None => Next::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_what_is_missed_is_told() {
        let kept = Kept::new(10, 100);
        assert_eq!(kept.after(0), Next::Nothing);
        for number in 1..=15 {
            kept.push(number, 0);
        }
        assert_eq!(kept.after(0), Next::Missed { count: 5, up_to: 5 });
        assert_eq!(kept.after(4), Next::Missed { count: 1, up_to: 5 });
        assert_eq!(kept.after(5), Next::Item(6, 6));
        assert_eq!(kept.after(14), Next::Item(15, 15));
        assert_eq!(kept.after(15), Next::Nothing);
        assert_eq!(*kept.last().borrow(), 15);
        kept.push(16, 60);
        kept.push(17, 60);
        assert_eq!(kept.after(0), Next::Missed { count: 16, up_to: 16 }, "both are too large");
        kept.push(18, 101);
        assert_eq!(kept.after(17), Next::Missed { count: 1, up_to: 18 }, "this one by itself");
        assert_eq!(kept.after(18), Next::Nothing);
    }
}
