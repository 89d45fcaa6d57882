//! The file as ggml reads it.

use super::super::report::{Check, CheckId, NotChecked};
use super::super::{VerifyError, witness};
use super::{Parsed, things};
use crate::witness::{Program, Witness, WitnessError, pieces};

/// Its reader, then its rules for blocks, by one child. `sound`: whether the file keeps to all other rules.
pub fn check(
    parts: &[Parsed],
    program: &Program,
    sound: bool,
    checks: &mut Vec<Check>,
    not_checked: &mut Vec<NotChecked>,
) -> Result<(), VerifyError> {
    let mut ggml = Ggml {
        parts,
        checks,
        not_checked,
    };
    ggml.check(program, sound)
}

/// What ggml says of the files.
struct Ggml<'a> {
    parts: &'a [Parsed<'a>],
    checks: &'a mut Vec<Check>,
    not_checked: &'a mut Vec<NotChecked>,
}

impl Ggml<'_> {
    fn check(&mut self, program: &Program, sound: bool) -> Result<(), VerifyError> {
        let read = Witness::start(program).and_then(|mut witness| {
            let check = self.reader(&mut witness)?;
            Ok((witness, check))
        });
        let mut witness = match read {
            Ok((witness, check)) => {
                self.checks.push(check);
                witness
            }
            Err(error) => return self.failed(CheckId::GgmlReader, error),
        };
        if !sound {
            // ggml names the place on stderr, which we have done in the failed check.
            let why = "the file does not keep to the rules above";
            self.not_checked.push(NotChecked::new(CheckId::GgmlBlocks.name(), why));
            return Ok(());
        }
        match self.blocks(&mut witness) {
            Ok(check) => self.checks.push(check),
            Err(error) => return self.failed(CheckId::GgmlBlocks, error),
        }
        Ok(())
    }

    fn reader(&self, witness: &mut Witness) -> Result<Check, WitnessError> {
        let mut problems = vec![];
        for (part, file) in self.parts {
            let expected = (file.tensors().len(), file.metadata().len());
            let found = witness.read_gguf(&part.path, file.data_start())?;
            if found != expected {
                problems.push(format!(
                    "ggml finds {} tensors and {} keys, we find {} and {}",
                    found.0, found.1, expected.0, expected.1
                ));
            }
        }
        Ok(Check::no_problems(
            CheckId::GgmlReader,
            problems,
            self.parts.iter().map(|(_, file)| things(file)).sum(),
            "tensors and keys",
            "the reader of llama.cpp",
        ))
    }

    fn blocks(&self, witness: &mut Witness) -> Result<Check, WitnessError> {
        let (mut problems, mut count) = (vec![], 0);
        for (part, file) in self.parts {
            let sound = witness.check_blocks(&part.path, pieces(file))?;
            let refused = file.tensors().iter().zip(sound).filter(|(_, sound)| !sound);
            problems.extend(
                refused.map(|(info, _)| format!("ggml's own check does not accept the data of '{}'", info.name)),
            );
            count += file.tensors().len() as u64;
        }
        Ok(Check::no_problems(
            CheckId::GgmlBlocks,
            problems,
            count,
            "tensors",
            "llama.cpp --check-tensors (ggml-quants.c)",
        ))
    }

    fn failed(&mut self, id: CheckId, error: WitnessError) -> Result<(), VerifyError> {
        witness::failed(id, error, self.checks, self.not_checked)
    }
}
