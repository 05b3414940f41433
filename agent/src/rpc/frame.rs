//! Frames on a peer connection: four bytes of length, most significant first, then postcard.

use bytes::{Buf, Bytes, BytesMut};
use postcard::ser_flavors::Flavor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sky_chord::{Message, RingId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::LARGE;

/// The longest frame between peers that know each other: the largest value with room to spare for lists.
pub(super) const LONGEST: usize = sky_api::MAX_VALUE_BYTES + (8 << 20);

/// A buffer that was needed for one long frame is not kept for short ones.
const KEPT_BUFFER: usize = 1 << 20;

/// What is sent once both sides have said hello.
#[derive(Debug, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "nearly every frame is a message")]
pub(super) enum Frame {
    Message(Message),
    /// The sender founded or joined this ring after its hello.
    Ring(RingId),
}

/// [`Frame`] to be sent. The same encoding, from borrowed parts.
#[derive(Debug, Serialize)]
pub(super) enum FrameRef<'a> {
    Message(&'a Message),
    Ring(RingId),
}

/// Why the next frame cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("a frame cannot be decoded: {0}")]
    Malformed(postcard::Error),
}

/// Frames to be sent. The bytes of large values are not copied, but written from where they are.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// What belongs before these places of `bytes`, in their order.
    shared: Vec<(usize, Bytes)>,
}

impl Buffer {
    /// Behind bytes that are no frames.
    pub(super) const fn behind(bytes: Vec<u8>) -> Self {
        Self { bytes, shared: Vec::new() }
    }

    /// Appends a message or news.
    pub(super) fn append_frame(&mut self, frame: &FrameRef<'_>) -> Result<(), FrameError> {
        let value = match frame {
            FrameRef::Message(message) => message.body.value().map(|value| &value.bytes),
            FrameRef::Ring(_) => None,
        };
        self.append_with(frame, value.filter(|bytes| bytes.len() > LARGE))
    }

    /// Appends anything as a frame. If it is longer than [`LONGEST`], all stays as it was.
    pub(super) fn append(&mut self, content: &impl Serialize) -> Result<(), FrameError> {
        self.append_with(content, None)
    }

    fn append_with(
        &mut self,
        content: &impl Serialize,
        value: Option<&Bytes>,
    ) -> Result<(), FrameError> {
        let (start, shared, before) = (self.bytes.len(), self.shared.len(), self.len());
        self.bytes.extend_from_slice(&[0; 4]);
        let written = postcard::serialize_with_flavor(content, Append { buffer: self, value });
        let length = self.len() - before - 4;
        let checked = match (written, u32::try_from(length)) {
            (Err(error), _) => Err(FrameError::Malformed(error)),
            (Ok(()), Ok(short)) if length <= LONGEST => Ok(short),
            (Ok(()), _) => Err(FrameError::TooLong(length)),
        };
        match checked {
            Ok(short) => self.bytes[start..start + 4].copy_from_slice(&short.to_be_bytes()),
            Err(_) => {
                self.bytes.truncate(start);
                self.shared.truncate(shared);
            }
        }
        checked.map(|_| ())
    }

    /// All that is in it.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.shared.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All of it in one piece.
    #[cfg(test)]
    pub(super) fn whole(&self) -> Vec<u8> {
        self.parts().collect::<Vec<_>>().concat()
    }

    /// The pieces that it is made of, in their order.
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let rest = self.shared.last().map_or(0, |(place, _)| *place);
        let parts = self.shared.iter().scan(0, |done, (place, shared)| {
            let start = std::mem::replace(done, *place);
            Some([&self.bytes[start..*place], &shared[..]])
        });
        parts.flatten().chain([&self.bytes[rest..]])
    }

    /// Writes all of it and keeps the memory for more, if it is not much.
    pub(super) async fn write_to(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
    ) -> std::io::Result<()> {
        for part in self.parts() {
            stream.write_all(part).await?;
        }
        self.shared.clear();
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BUFFER);
        Ok(())
    }
}

/// Lets postcard write behind what is in a buffer already.
struct Append<'a> {
    buffer: &'a mut Buffer,
    /// What is shared, and not copied.
    value: Option<&'a Bytes>,
}

impl Flavor for Append<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.buffer.bytes.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        match self.value {
            Some(value) if std::ptr::eq(&raw const **value, bytes) => {
                self.buffer.shared.push((self.buffer.bytes.len(), value.clone()));
            }
            _ => self.buffer.bytes.extend_from_slice(bytes),
        }
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Reads frames from a stream.
#[derive(Debug)]
pub(super) struct Frames<R> {
    stream: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(super) fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(64 << 10) }
    }

    pub(super) fn stream(&mut self) -> &mut R {
        &mut self.stream
    }

    /// The next `N` bytes as they are.
    pub(super) async fn bytes<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        self.fill(N).await?;
        let mut bytes = [0; N];
        self.buffer.copy_to_slice(&mut bytes);
        Ok(bytes)
    }

    /// The length of the next frame, of at most `longest` bytes.
    pub(super) async fn length(&mut self, longest: usize) -> Result<usize, FrameError> {
        self.fill(4).await?;
        let length = self.buffer.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        let length = length as usize;
        if length > longest { Err(FrameError::TooLong(length)) } else { Ok(length) }
    }

    /// The next frame of at most `longest` bytes. Nothing is lost if the future is dropped.
    pub(super) async fn next<T: DeserializeOwned>(
        &mut self,
        longest: usize,
    ) -> Result<T, FrameError> {
        let length = self.length(longest).await?;
        self.fill(4 + length).await?;
        let content = postcard::from_bytes(&self.buffer[4..4 + length]);
        self.buffer.advance(4 + length);
        if length > KEPT_BUFFER {
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        content.map_err(FrameError::Malformed)
    }

    /// Reads on until `length` bytes are there. Memory is taken as the bytes come, not as announced.
    async fn fill(&mut self, length: usize) -> Result<(), FrameError> {
        while self.buffer.len() < length {
            self.buffer.reserve(16 << 10);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sky_chord::{Body, CallId, Condition, Key, Operation, RequestId, Value};

    use super::*;

    #[tokio::test]
    async fn frames_arrive_whole_however_they_are_cut() {
        let mut buffer = Buffer::default();
        buffer.append_frame(&FrameRef::Ring(RingId(7))).unwrap();
        buffer.append_frame(&FrameRef::Ring(RingId(8))).unwrap();
        let bytes = buffer.whole();
        for cut in 0..bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            let mut frames = Frames::new(AsyncReadExt::chain(head, tail));
            for ring in [7, 8] {
                let frame = frames.next(LONGEST).await.unwrap();
                assert!(matches!(frame, Frame::Ring(RingId(id)) if id == ring));
            }
        }
    }

    /// A message with a value of so many bytes.
    fn carrying(bytes: usize) -> Message {
        let bytes = (0..bytes).map(|i| i as u8).collect::<Vec<_>>().into();
        let value = Value { content_type: "x".into(), bytes, ttl: None };
        let operation = Operation::Put { key: Key::new("k"), value, condition: Condition::Always };
        let body = Body::Forward {
            request: RequestId(1),
            stamp: 2,
            retry: false,
            sole: true,
            budget_ms: 3,
            operation: Box::new(operation),
        };
        Message { call: CallId(4), body }
    }

    #[tokio::test]
    async fn values_that_are_not_copied_are_where_they_belong() {
        let sizes = [10, LARGE + 1, LARGE, 3 * LARGE, 0, LARGE + 2];
        let messages = sizes.map(carrying);
        let mut buffer = Buffer::default();
        for message in &messages {
            buffer.append_frame(&FrameRef::Message(message)).unwrap();
        }
        assert_eq!(buffer.shared.len(), 3);
        let (all, mut bytes) = (buffer.whole(), Vec::new());
        assert_eq!(all.len(), buffer.len());
        buffer.write_to(&mut bytes).await.unwrap();
        assert!(bytes == all);
        assert!(buffer.is_empty() && buffer.shared.is_empty());
        let mut frames = Frames::new(&bytes[..]);
        for message in messages {
            let frame = frames.next(LONGEST).await.unwrap();
            assert!(matches!(frame, Frame::Message(same) if same == message));
        }
    }

    #[tokio::test]
    async fn what_is_too_long_is_neither_sent_nor_read() {
        let mut buffer = Buffer::behind(b"before".to_vec());
        let error = buffer.append(&vec![0u8; LONGEST]).unwrap_err();
        assert!(matches!(error, FrameError::TooLong(_)), "{error}");
        let error = buffer.append_frame(&FrameRef::Message(&carrying(LONGEST))).unwrap_err();
        assert!(matches!(error, FrameError::TooLong(_)), "{error}");
        assert_eq!(buffer.whole(), b"before");
        let mut frames = Frames::new(&[0xff; 64][..]);
        let error = frames.next::<Frame>(LONGEST).await.unwrap_err();
        assert!(matches!(error, FrameError::TooLong(_)), "{error}");
    }
}
