//! The parent's ends of the child's pipes: a thread waits at each. It ends with its pipe, which a process that the child
//! has started may keep open for longer: nobody waits for a thread.

use std::io::{self, Cursor, ErrorKind, Read, Write};
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::Builder;
use std::time::Duration;

use super::log::Log;

/// Bytes that are moved at once: what a pipe holds on Linux.
const PIECE: usize = 64 << 10;
/// Pieces that are kept for the parent; with more the child has to wait.
const PIECES: usize = 16;

/// What was waited for.
pub(super) enum Waited {
    /// The child has sent a piece, or taken one.
    Moved,
    /// It has closed its end.
    Closed,
    /// Neither.
    Nothing,
}

/// A piece that the child has sent, empty where it has taken one; `None`: it has closed its end.
type Message = Option<Vec<u8>>;

pub(super) struct Pipes {
    orders: Sender<Vec<u8>>,
    messages: Receiver<Message>,
    piece: Cursor<Vec<u8>>,
    /// What the child writes to stderr.
    pub log: Arc<Log>,
}

impl Pipes {
    /// Take the child's pipes.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn of(child: &mut Child) -> io::Result<Self> {
        let each = "each pipe is taken once";
        let stdin = child.stdin.take().expect(each);
        let stdout = child.stdout.take().expect(each);
        let stderr = child.stderr.take().expect(each);
        let (orders, to_send) = channel();
        let (messages, received) = sync_channel(PIECES);
        let log = Arc::new(Log::default());
        let (moved, kept) = (messages.clone(), log.clone());
        Builder::new().spawn(move || send(&to_send, stdin, &moved))?;
        Builder::new().spawn(move || receive(stdout, &messages))?;
        Builder::new().spawn(move || kept.keep(stderr))?;
        Ok(Self {
            orders,
            messages: received,
            piece: Cursor::default(),
            log,
        })
    }

    /// Send `bytes` to the child, without waiting until it takes them.
    pub fn send(&self, bytes: Vec<u8>) {
        // Where the thread is no more, it has said that the child closed its end.
        let _ = self.orders.send(bytes);
    }

    /// Take what the child has sent, as much as there is and fits; how much that was.
    pub fn take(&mut self, bytes: &mut [u8]) -> usize {
        self.piece.read(bytes).expect("memory can be read")
    }

    /// Wait for the child; not before all of the last piece is taken.
    pub fn wait(&mut self, at_most: Duration) -> Waited {
        match self.messages.recv_timeout(at_most) {
            Ok(Some(piece)) => {
                if !piece.is_empty() {
                    self.piece = Cursor::new(piece);
                }
                Waited::Moved
            }
            Ok(None) | Err(RecvTimeoutError::Disconnected) => Waited::Closed,
            Err(RecvTimeoutError::Timeout) => Waited::Nothing,
        }
    }
}

fn send(orders: &Receiver<Vec<u8>>, mut stdin: impl Write, messages: &SyncSender<Message>) {
    for order in orders {
        for piece in order.chunks(PIECE) {
            if stdin.write_all(piece).is_err() {
                let _ = messages.send(None);
                return;
            }
            if messages.send(Some(vec![])).is_err() {
                return;
            }
        }
    }
}

fn receive(mut stdout: impl Read, messages: &SyncSender<Message>) {
    let mut piece = vec![0; PIECE];
    loop {
        let message = match stdout.read(&mut piece) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => None,
            Ok(count) => Some(piece[..count].to_vec()),
        };
        let ended = message.is_none();
        if messages.send(message).is_err() || ended {
            return;
        }
    }
}
