//! What the child answers with, and why it may have no answer.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde::Serialize;

use super::protocol::{Kind, head};
use crate::system;

/// Why there is no answer.
pub(super) enum Refusal {
    /// llama.cpp refuses; what it said beside its log.
    Llama(String),
    /// It cannot be done here, whatever the file is.
    CouldNot(String),
    /// The parent takes no answers.
    Gone(io::Error),
}

/// Where answers go: what stdout was. What llama.cpp prints goes to stderr.
pub(super) struct Output(Mutex<File>);

impl Output {
    /// Take stdout for answers.
    pub fn take() -> io::Result<Self> {
        Ok(Self(Mutex::new(system::take_stdout()?)))
    }

    /// Answer the order.
    pub fn done(&self, header: &impl Serialize, bulk: &[&[u8]]) -> Result<(), Refusal> {
        self.send(Kind::Done, header, bulk).map_err(Refusal::Gone)
    }

    /// Send a frame: what it is, its header, and the bytes after it.
    pub fn send<T: Serialize>(&self, kind: Kind, header: &T, bulk: &[&[u8]]) -> io::Result<()> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let length = bulk.iter().map(|part| part.len()).sum();
        file.write_all(&head(kind, header, length))?;
        bulk.iter().try_for_each(|part| file.write_all(part))
    }
}

/// Whether so many threads can be started: ggml aborts where they cannot.
pub(super) fn can_start_threads(count: usize) -> Result<(), Refusal> {
    let gate = Mutex::new(());
    let closed = gate.lock();
    thread::scope(|scope| {
        let start = |_| {
            thread::Builder::new().spawn_scoped(scope, || drop(gate.lock()))?;
            Ok(())
        };
        let started = (0..count).try_for_each(start);
        drop(closed);
        started.map_err(|error: io::Error| {
            Refusal::CouldNot(format!(
                "{count} threads cannot be started: {error}; use fewer --threads"
            ))
        })
    })
}
