//! Threads that read and write backups, because a disk or a pipe may keep them waiting while requests are
//! under way.

use std::fs::File;
use std::io::{self, BufWriter, Read};

use sky_chord::Id;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::{Block, Damage, Frame, Header, Reader, Trailer, Writer};
use crate::room::Room;

/// Blocks that may wait for a thread, or for whoever reads them.
const WAITING: usize = 8;

/// What is handed over to be written.
enum Written {
    Block(Block),
    /// The end, and what was left out.
    End(Vec<(Id, Id)>),
}

/// Takes blocks to be written.
pub(crate) struct Sink {
    blocks: mpsc::Sender<Written>,
    outcome: oneshot::Receiver<io::Result<Option<Trailer>>>,
}

impl Sink {
    /// Starts the thread. When the sink is dropped, what was handed over is still written.
    pub(crate) fn start(mut writer: Writer<BufWriter<File>>) -> Self {
        let (blocks, mut waiting) = mpsc::channel::<Written>(WAITING);
        let (done, outcome) = oneshot::channel();
        std::thread::spawn(move || {
            let write = move || {
                while let Some(written) = waiting.blocking_recv() {
                    match written {
                        Written::Block(block) => writer.block(&block)?,
                        Written::End(left_out) => {
                            return writer.finish(left_out).map(|(_, trailer)| Some(trailer));
                        }
                    }
                }
                Ok(None)
            };
            // Nobody is left who wants to know if this fails.
            let _ = done.send(write());
        });
        Self { blocks, outcome }
    }

    /// Hands over a block. False if nothing can be written any more: [`Self::finish`] tells why.
    pub(crate) async fn put(&self, block: Block) -> bool {
        self.blocks.send(Written::Block(block)).await.is_ok()
    }

    /// Ends the backup, which has nothing of these parts of the circle.
    pub(crate) async fn finish(self, left_out: Vec<(Id, Id)>) -> io::Result<Trailer> {
        // Fails only if the outcome is an error already.
        let _ = self.blocks.send(Written::End(left_out)).await;
        match self.outcome.await {
            Ok(Ok(Some(trailer))) => Ok(trailer),
            Ok(Err(error)) => Err(error),
            Ok(Ok(None)) | Err(_) => Err(io::Error::other("the writing thread has ended")),
        }
    }
}

/// Gives the parts of a backup, in order.
pub(crate) struct Feed {
    parts: mpsc::Receiver<Result<Part, Damage>>,
}

/// A part of a backup.
pub(crate) enum Part {
    /// What comes first.
    Header(Header),
    /// Keys.
    Block(Block),
    /// The end of a complete backup.
    End(Trailer),
}

impl Feed {
    /// Starts the thread. It waits while too many large values are held by whoever takes the parts.
    pub(crate) fn start(input: Box<dyn Read + Send>) -> Self {
        let (sender, parts) = mpsc::channel(WAITING);
        let (room, runtime) = (Room::new(), Handle::current());
        std::thread::spawn(move || {
            let read = || {
                let mut reader = Reader::open(input)?;
                // An error means that nobody wants more.
                let mut wanted = sender.blocking_send(Ok(Part::Header(reader.header().clone())));
                while wanted.is_ok()
                    && let Some(frame) = reader.next()?
                {
                    wanted = sender.blocking_send(Ok(match frame {
                        Frame::Block(block) => Part::Block(runtime.block_on(hold(&room, block))),
                        Frame::Trailer(trailer) => Part::End(trailer),
                    }));
                }
                Ok(())
            };
            if let Err(damage) = read() {
                let _ = sender.blocking_send(Err(damage));
            }
        });
        Self { parts }
    }

    /// The next part; none after the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Part>, Damage> {
        self.parts.recv().await.transpose()
    }
}

/// A block whose large values take their room.
async fn hold(room: &Room, mut block: Block) -> Block {
    for entry in &mut block.entries {
        let place = room.take(entry.value.len()).await;
        entry.value = place.hold(std::mem::take(&mut entry.value));
    }
    block
}
