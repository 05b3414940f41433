//! Memory for large values: a command that reads or sends many of them holds only some at once.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many KiB of large values are held at once.
const KIB: usize = 192 << 10;
/// Values up to this size are not counted: their number is limit enough.
const SMALL: usize = 256 << 10;

/// What is free of it.
#[derive(Clone)]
pub(crate) struct Room(Arc<Semaphore>);

/// Room for one value; none is needed for a small one.
pub(crate) struct Place(Option<OwnedSemaphorePermit>);

impl Room {
    /// All of it free.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(KIB)))
    }

    /// Waits for the room that a value of so many bytes takes.
    pub(crate) async fn take(&self, bytes: usize) -> Place {
        if bytes <= SMALL {
            return Place(None);
        }
        let kib = bytes.div_ceil(1 << 10).min(KIB);
        // The semaphore is never closed.
        Place(Arc::clone(&self.0).acquire_many_owned(kib as u32).await.ok())
    }
}

impl Place {
    /// A value that takes this room until nobody has it any more.
    pub(crate) fn hold(self, bytes: Bytes) -> Bytes {
        match self.0 {
            Some(place) => Bytes::from_owner(Held { bytes, _place: place }),
            None => bytes,
        }
    }
}

struct Held {
    bytes: Bytes,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_large_value_has_its_place_until_it_is_gone() {
        let room = Room::new();
        let hold = || {
            let place = room.take(64 << 20).now_or_never()?;
            Some(place.hold(Bytes::from_static(b"large")))
        };
        let mut held: Vec<_> = std::iter::from_fn(hold).collect();
        assert_eq!(held.len(), 3);
        assert_eq!(held[0], "large");
        assert!(room.take(SMALL).now_or_never().is_some(), "small ones need none");
        held.pop();
        held.extend(std::iter::from_fn(hold));
        assert_eq!(held.len(), 3);
    }
}
