//! Frames on a peer connection: four bytes of length, most significant first, then postcard.

use bytes::{Buf, BytesMut};
use postcard::ser_flavors::Flavor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sky_chord::{Message, RingId};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest frame between peers that know each other: the largest value with room to spare for lists.
pub(super) const LONGEST: usize = 2 * sky_api::MAX_VALUE_BYTES;

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

/// Lets postcard write behind what is in a buffer already.
struct Append<'a>(&'a mut Vec<u8>);

impl Flavor for Append<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Appends a frame. If it is longer than [`LONGEST`], `buffer` stays as it was.
pub(super) fn append(buffer: &mut Vec<u8>, content: &impl Serialize) -> Result<(), FrameError> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    let written = postcard::serialize_with_flavor(content, Append(buffer));
    let length = buffer.len() - start - 4;
    let checked = match (written, u32::try_from(length)) {
        (Err(error), _) => Err(FrameError::Malformed(error)),
        (Ok(()), Ok(short)) if length <= LONGEST => Ok(short),
        (Ok(()), _) => Err(FrameError::TooLong(length)),
    };
    match checked {
        Ok(short) => buffer[start..start + 4].copy_from_slice(&short.to_be_bytes()),
        Err(_) => buffer.truncate(start),
    }
    checked.map(|_| ())
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
    use super::*;

    #[tokio::test]
    async fn frames_arrive_whole_however_they_are_cut() {
        let mut bytes = Vec::new();
        append(&mut bytes, &FrameRef::Ring(RingId(7))).unwrap();
        append(&mut bytes, &FrameRef::Ring(RingId(8))).unwrap();
        for cut in 0..bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            let mut frames = Frames::new(AsyncReadExt::chain(head, tail));
            for ring in [7, 8] {
                let frame = frames.next(LONGEST).await.unwrap();
                assert!(matches!(frame, Frame::Ring(RingId(id)) if id == ring));
            }
        }
    }

    #[tokio::test]
    async fn what_is_too_long_is_neither_sent_nor_read() {
        let mut bytes = b"before".to_vec();
        let error = append(&mut bytes, &vec![0u8; LONGEST]).unwrap_err();
        assert!(matches!(error, FrameError::TooLong(_)), "{error}");
        assert_eq!(bytes, b"before");
        let mut frames = Frames::new(&[0xff; 64][..]);
        let error = frames.next::<Frame>(LONGEST).await.unwrap_err();
        assert!(matches!(error, FrameError::TooLong(_)), "{error}");
    }
}
