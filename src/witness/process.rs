//! The parent's end: starts the child, speaks to it, and never waits for ever.
//!
//! Each pipe has a thread, as only a thread can wait for one on every system. All waiting for them is in one place,
//! [`Process::wait`]: for as long as the child gives signs of life and has not had its time.

use std::io;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytemuck::Pod;
use serde::de::DeserializeOwned;

use super::child::ALIVE;
use super::error::{Ending, WitnessError};
use super::pipes::{Pipes, Waited};
use super::protocol::{Kind, Order, PREFIX, Prefix, Work, head};
use super::{Program, SUBCOMMAND};
use crate::system;

/// What an order may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// Bytes of memory of the process in all.
    pub memory: u64,
    pub time: Duration,
}

/// A running child.
pub(super) struct Process {
    child: Child,
    pipes: Pipes,
    patience: Duration,
    /// What it is doing, to follow "while".
    doing: String,
    /// Bytes of memory that it may have.
    memory: u64,
}

/// Why there is no answer.
enum Failure {
    /// The child has closed its end.
    Closed,
    Silent,
    Late(Duration),
    Garbled(String),
}

/// Header and bulk of an answer.
type Answer<B> = (Kind, Vec<u8>, Vec<B>);

impl Process {
    /// Start the program, and take what it says of itself.
    pub fn start<T: DeserializeOwned>(program: &Program, cost: Cost) -> Result<(Self, T), WitnessError> {
        let spawned = spawn(program, cost.memory);
        let mut process = spawned.map_err(|source| WitnessError::Start {
            program: program.path.clone(),
            source,
        })?;
        let hello = process.answer::<u8>(&mut Clock::new(cost.time));
        let (hello, _) = process.told(hello)?;
        Ok((process, hello))
    }

    /// Let the child do `work` with `bulk`; the header and the bulk of its answer.
    pub fn ask<T: DeserializeOwned, B: Pod>(
        &mut self,
        work: Work,
        bulk: &[&[u8]],
        cost: Cost,
    ) -> Result<(T, Vec<B>), WitnessError> {
        self.doing = work.to_string();
        // Not more than the user allows this process.
        self.memory = cost.memory.min(system::memory_limit().unwrap_or(u64::MAX));
        let memory = self.memory;
        let length = bulk.iter().map(|part| part.len()).sum();
        let head = head(Kind::Order, &Order { work, memory }, length);
        self.pipes.send([&[&head[..]], bulk].concat().concat());
        let answer = self.answer(&mut Clock::new(cost.time));
        self.told(answer)
    }

    /// What an answer means to the caller.
    fn told<T: DeserializeOwned, B>(
        &mut self,
        answer: Result<Answer<B>, Failure>,
    ) -> Result<(T, Vec<B>), WitnessError> {
        let (kind, header, bulk) = answer.map_err(|failure| self.failed(failure))?;
        if kind == Kind::Done {
            let value = read(&header).map_err(|failure| self.failed(failure))?;
            self.pipes.log.clear();
            return Ok((value, bulk));
        }
        let why = read(&header).map_err(|failure| self.failed(failure))?;
        Err(self.refused(kind, why))
    }

    /// The next frame that is no mere sign of life.
    fn answer<B: Pod>(&mut self, clock: &mut Clock) -> Result<Answer<B>, Failure> {
        loop {
            let mut prefix = [0; PREFIX];
            self.receive(&mut prefix, clock)?;
            let frame = Prefix::read(&prefix).filter(|frame| frame.kind != Kind::Order);
            let Some(frame) = frame else {
                let text: String = String::from_utf8_lossy(&prefix).into();
                return Err(Failure::Garbled(format!("{text:?}")));
            };
            let mut header = vec![0; frame.header];
            self.receive(&mut header, clock)?;
            let size = size_of::<B>() as u64;
            // It cannot have more than it may have.
            if frame.bulk > self.memory || !frame.bulk.is_multiple_of(size) {
                return Err(Failure::Garbled(format!("{} bytes", frame.bulk)));
            }
            let mut bulk = vec![B::zeroed(); (frame.bulk / size) as usize];
            self.receive(bytemuck::cast_slice_mut(&mut bulk), clock)?;
            if frame.kind != Kind::Alive {
                return Ok((frame.kind, header, bulk));
            }
        }
    }

    fn receive(&mut self, mut bytes: &mut [u8], clock: &mut Clock) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let count = self.pipes.take(bytes);
            bytes = &mut bytes[count..];
            if count == 0 {
                self.wait(clock)?;
            }
        }
        Ok(())
    }

    /// Wait until the child sends, or has taken a piece of what is sent.
    fn wait(&mut self, clock: &mut Clock) -> Result<(), Failure> {
        let step = (self.patience / 4).min(ALIVE);
        loop {
            let begin = Instant::now();
            let waited = self.pipes.wait(step);
            // What takes longer than it may is not the child's: this process was stopped itself.
            clock.pass(begin.elapsed().min(step));
            // Signs of life are no answer.
            if clock.total >= clock.limit {
                return Err(Failure::Late(clock.limit));
            }
            match waited {
                Waited::Moved => {
                    clock.heard();
                    return Ok(());
                }
                Waited::Closed => return Err(Failure::Closed),
                Waited::Nothing if clock.silent >= self.patience => return Err(Failure::Silent),
                Waited::Nothing => {}
            }
        }
    }

    /// llama.cpp has said no.
    fn refused(&mut self, kind: Kind, why: String) -> WitnessError {
        let log = self.pipes.log.last_words();
        self.pipes.log.clear();
        let doing = self.doing.clone();
        if kind == Kind::CouldNot {
            return WitnessError::CouldNot { doing, why };
        }
        let log = if log.is_empty() && !why.is_empty() {
            vec![why]
        } else {
            log
        };
        if let Some(error) = self.out_of_memory(&log) {
            return error;
        }
        WitnessError::Refused { doing, log }
    }

    /// End the child, and say what has happened to it.
    fn failed(&mut self, failure: Failure) -> WitnessError {
        let status = match failure {
            Failure::Closed => self.ended_by_itself(),
            _ => None,
        };
        let _ = self.child.kill();
        let killed = self.child.wait();
        let (doing, log) = (self.doing.clone(), self.pipes.log.last_words());
        match failure {
            Failure::Closed => match status.map_or(killed, Ok) {
                Err(source) => WitnessError::CouldNot {
                    doing,
                    why: format!("{source}; try again"),
                },
                Ok(status) => self.out_of_memory(&log).unwrap_or(WitnessError::Crashed {
                    doing,
                    ending: Ending(status),
                    log,
                }),
            },
            Failure::Silent => WitnessError::Silent {
                doing,
                seconds: self.patience.as_secs_f64(),
                log,
            },
            Failure::Late(limit) => WitnessError::Late {
                doing,
                seconds: limit.as_secs_f64(),
                log,
            },
            Failure::Garbled(found) => WitnessError::Garbled { doing, found, log },
        }
    }

    /// How the child ended, having closed its pipes; `None` where it lives on.
    fn ended_by_itself(&mut self) -> Option<std::process::ExitStatus> {
        const STEP: Duration = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        while waited < self.patience {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(STEP);
            waited += STEP;
        }
        None
    }

    /// An error where the log tells of memory that was not to be had: of the machine, where it has less than was allowed.
    fn out_of_memory(&self, log: &[String]) -> Option<WitnessError> {
        const TELLS: [&str; 5] = [
            "insufficient memory",
            "failed to allocate",
            "unable to allocate",
            "bad_alloc",
            "memory allocation of",
        ];
        let tells = |line: &String| TELLS.iter().any(|tell| line.contains(tell));
        let line = log.iter().find(|line| tells(line))?;
        let doing = self.doing.clone();
        Some(if system::available_memory() < self.memory {
            let why = format!("out of memory ({line}); free memory, or use fewer --threads");
            WitnessError::CouldNot { doing, why }
        } else {
            WitnessError::Memory {
                doing,
                bytes: self.memory,
                log: log.to_vec(),
            }
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// The whole header as a value.
fn read<T: DeserializeOwned>(header: &[u8]) -> Result<T, Failure> {
    match postcard::take_from_bytes(header) {
        Ok((value, [])) => Ok(value),
        _ => Err(Failure::Garbled("something else".into())),
    }
}

fn spawn(program: &Program, memory: u64) -> io::Result<Process> {
    let mut child = Command::new(&program.path)
        .arg(SUBCOMMAND)
        .args(&program.library)
        .env("GGML_NO_BACKTRACE", "1") // which would start a debugger
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    match Pipes::of(&mut child) {
        Ok(pipes) => Ok(Process {
            child,
            pipes,
            patience: program.patience,
            doing: "starting".into(),
            memory,
        }),
        Err(error) => {
            end(&mut child);
            Err(error)
        }
    }
}

/// Nothing that the child still does is of use, and it must not stay as a zombie.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Time since the last sign of life, and since the order.
struct Clock {
    silent: Duration,
    total: Duration,
    limit: Duration,
}

impl Clock {
    fn new(limit: Duration) -> Self {
        Self {
            silent: Duration::ZERO,
            total: Duration::ZERO,
            limit,
        }
    }

    fn pass(&mut self, time: Duration) {
        self.silent += time;
        self.total += time;
    }

    fn heard(&mut self) {
        self.silent = Duration::ZERO;
    }
}
