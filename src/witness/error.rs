//! What can go wrong with a witness, and which of it is a finding about the file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use crate::system::{self, Fault, MORE_PROCESSES};

/// Why the witness did not answer.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// The feature `llama` is off.
    #[error("this tqconv was built without llama.cpp: name one with --llama PATH")]
    NotBuiltIn,
    /// The user's library cannot be used.
    #[error("the llama.cpp at {} cannot be used: {why}", path.display())]
    Library {
        /// As the user named it.
        path: PathBuf,
        /// What was found, and what would help.
        why: String,
    },
    /// The process cannot be started.
    #[error(
        "llama.cpp cannot be started as {}: {source}; {MORE_PROCESSES}", program.display()
    )]
    Start {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The machine lacks what llama.cpp needs, whatever the file is.
    #[error("llama.cpp stopped while {doing}: {why}")]
    CouldNot {
        /// What it was doing.
        doing: String,
        /// What is lacking, and what would help.
        why: String,
    },
    /// A text that would need too large a stack.
    #[error(
        "the text has {length} characters in a row without a change between space and no space, for which llama.cpp's \
         regular expressions need too much stack; use a text with at most {} in a row",
        super::LONGEST_RUN
    )]
    LongRun {
        /// How many.
        length: usize,
    },
    /// llama.cpp says no.
    #[error("llama.cpp refused while {doing}: {}; convert the model again", joined(log))]
    Refused {
        /// What it was doing.
        doing: String,
        /// What it said.
        log: Vec<String>,
    },
    /// The process is no more.
    #[error("llama.cpp crashed while {doing}: {ending}{}; {}", last_words(log), ending.remedy())]
    Crashed {
        /// What it was doing.
        doing: String,
        /// How it ended.
        ending: Ending,
        /// The last lines that it wrote.
        log: Vec<String>,
    },
    /// It asked for more memory than the file explains.
    #[error(
        "llama.cpp wanted more than the {:.1} GB of memory that the file explains while {doing}{}; \
         try the file with another build of llama.cpp",
        *bytes as f64 / 1e9,
        last_words(log)
    )]
    Memory {
        /// What it was doing.
        doing: String,
        /// What it was allowed.
        bytes: u64,
        /// The last lines that it wrote.
        log: Vec<String>,
    },
    /// Not a sign of life.
    #[error(
        "llama.cpp was silent for {seconds:.0} s while {doing}, where it gives signs of life all the time: stopped or \
         starved{}; continue or end what keeps it, and try again",
        last_words(log)
    )]
    Silent {
        /// What it was doing.
        doing: String,
        /// For how long.
        seconds: f64,
        /// The last lines that it wrote.
        log: Vec<String>,
    },
    /// Alive, but without an answer for too long.
    #[error(
        "llama.cpp gave no answer within {seconds:.0} s while {doing}, a hundred times what the work takes{}; \
         try the file with another build of llama.cpp",
        last_words(log)
    )]
    Late {
        /// What it was doing.
        doing: String,
        /// The limit.
        seconds: f64,
        /// The last lines that it wrote.
        log: Vec<String>,
    },
    /// It answers, but not as a witness does.
    #[error(
        "the witness of llama.cpp answered {found} while {doing}{}; use a program of the same build",
        last_words(log)
    )]
    Garbled {
        /// What it was doing.
        doing: String,
        /// What it answered.
        found: String,
        /// The last lines that it wrote.
        log: Vec<String>,
    },
}

impl WitnessError {
    /// An error of starting as one of the library that the user named, where one was.
    pub(super) fn of_library(self, library: Option<&Path>) -> Self {
        let Some(path) = library.filter(|_| !matches!(self, Self::Start { .. })) else {
            return self;
        };
        let path = path.to_owned();
        let why = match self {
            Self::CouldNot { why, .. } => why,
            Self::Crashed { ending, log, .. } => {
                format!("it ends its process: {ending}{}; name another build", last_words(&log))
            }
            error => error.to_string(),
        };
        Self::Library { path, why }
    }

    /// Whether this says something about the file or about llama.cpp; else something was lacking.
    pub fn is_finding(&self) -> bool {
        !matches!(
            self,
            Self::NotBuiltIn | Self::Library { .. } | Self::Start { .. } | Self::CouldNot { .. } | Self::LongRun { .. }
        )
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending(pub ExitStatus);

const OTHER_BUILD: &str = "try the file with another build of llama.cpp";

/// What a fault means, and what to try.
fn explained(fault: Fault) -> (&'static str, &'static str) {
    match fault {
        Fault::Instruction => (
            "an instruction that the CPU does not have, or not so",
            "build llama.cpp again on this machine (`cargo clean -p llama-cpp-sys-2`), or with another compiler",
        ),
        Fault::Abort => (
            "it gave up",
            "convert the model again, or try the file with another build of llama.cpp",
        ),
        Fault::Address => ("it used memory that is not its own", OTHER_BUILD),
        Fault::Mapping => ("the file became shorter, or memory is broken", OTHER_BUILD),
        Fault::Arithmetic => ("it divided by zero", OTHER_BUILD),
        Fault::Outside => (
            "it was ended from outside",
            "see whether memory ran out (on Linux in `dmesg`); try again, with fewer --threads or a smaller --window",
        ),
        Fault::ProcessorTime => ("it used up its processor time", "raise `ulimit -t`"),
    }
}

impl Ending {
    fn remedy(self) -> &'static str {
        let (_, fault) = system::ending(self.0);
        fault.map_or(OTHER_BUILD, |fault| explained(fault).1)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (name, fault) = system::ending(self.0);
        match fault {
            Some(fault) => write!(f, "{name} ({})", explained(fault).0),
            None => f.write_str(&name),
        }
    }
}

fn joined(log: &[String]) -> String {
    match log {
        [] => "it does not say why".into(),
        _ => log.join("; "),
    }
}

fn last_words(log: &[String]) -> String {
    match log {
        [] => String::new(),
        _ => format!("; its last words: {}", log.join("; ")),
    }
}
