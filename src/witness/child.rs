//! The child: reads orders from stdin, lets llama.cpp do them, and answers.
//!
//! It ends with the parent: at the end of stdin, at the first answer that nobody takes, and on Linux by a signal of the
//! kernel's. Ctrl-C reaches it, too, and is left to the parent to decide about.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::answer::{Output, Refusal};
use super::ffi::Library;
use super::protocol::{Hello, Kind, Order, PREFIX, Prefix};
use crate::system;

/// How often the child says that it is at work.
pub(super) const ALIVE: Duration = Duration::from_millis(250);

/// Serve the parent, until it closes stdin, with the llama.cpp at `library` or the one that is linked in. Exit code 0; 3
/// where it speaks another language, or takes no answers.
pub fn serve(library: Option<&Path>) -> ExitCode {
    match run(library) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "the witness cannot go on: {error}");
            ExitCode::from(3)
        }
    }
}

fn run(library: Option<&Path>) -> io::Result<()> {
    let out = Arc::new(Output::take()?);
    alone()?;
    let mut library = match Library::open(library) {
        Ok(library) => library,
        Err(why) => return out.send(Kind::CouldNot, &why, &[]),
    };
    let busy = Arc::new(AtomicBool::new(false));
    let watched = (out.clone(), busy.clone());
    let pulse = thread::Builder::new().spawn(move || pulse(&watched.0, &watched.1));
    if let Err(error) = pulse {
        return out.send(
            Kind::CouldNot,
            &format!("no thread can be started: {error}; end other processes"),
            &[],
        );
    }
    out.send::<Hello>(Kind::Done, &library.hello(), &[])?;
    let mut input = io::stdin().lock();
    while let Some((order, bulk)) = next(&mut input)? {
        busy.store(true, Ordering::Relaxed);
        let answer = bound_memory(order.memory).and_then(|()| library.answer(order.work, bulk, &out));
        busy.store(false, Ordering::Relaxed);
        match answer {
            Ok(()) => {}
            Err(Refusal::Llama(why)) => out.send(Kind::Refused, &why, &[])?,
            Err(Refusal::CouldNot(why)) => out.send(Kind::CouldNot, &why, &[])?,
            Err(Refusal::Gone(error)) => return Err(error),
        }
    }
    Ok(())
}

/// End with the parent, leave interrupts to it, and leave no image of the memory behind.
fn alone() -> io::Result<()> {
    system::end_with_parent()?;
    system::leave_interrupts()?;
    system::leave_no_core()
}

fn bound_memory(bytes: u64) -> Result<(), Refusal> {
    system::limit_memory(bytes)
        .map_err(|error| Refusal::CouldNot(format!("its memory cannot be bounded: {error}; raise `ulimit -d`")))
}

/// Say now and then that the child is at work. Where nobody listens any more, the work is for nothing.
fn pulse(out: &Output, busy: &AtomicBool) {
    loop {
        thread::sleep(ALIVE);
        if busy.load(Ordering::Relaxed) && out.send(Kind::Alive, &(), &[]).is_err() {
            std::process::exit(3);
        }
    }
}

/// The next order with its bulk; `None` at the end.
fn next(input: &mut impl Read) -> io::Result<Option<(Order, Vec<u8>)>> {
    let foreign = || io::Error::other("what it reads is no order");
    let mut prefix = [0; PREFIX];
    match input.read_exact(&mut prefix) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let prefix = Prefix::read(&prefix).filter(|prefix| prefix.kind == Kind::Order);
    let prefix = prefix.ok_or_else(foreign)?;
    let mut header = vec![0; prefix.header];
    input.read_exact(&mut header)?;
    let order = postcard::from_bytes(&header).map_err(|_| foreign())?;
    let mut bulk = vec![0; usize::try_from(prefix.bulk).map_err(|_| foreign())?];
    input.read_exact(&mut bulk)?;
    Ok(Some((order, bulk)))
}
