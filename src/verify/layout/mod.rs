//! Level 1: whether the file keeps to llama.cpp's rules, as three readers see it: ours, gguf-rs-lib, and ggml's own.

mod finite;
mod ggml;
mod second_reader;
mod tokenizer;

use formats::block::BlockType;
use formats::gguf::File;

use super::ollama;
use super::report::{Check, CheckId, Level, LevelReport, NotChecked};
use super::{Options, VerifyError};
use crate::engine::hyper::Hyper;
use crate::mapped::{Model, OpenError, Part};

/// All checks of the level. `file`: what `model` holds. `is_ours`: whether its architecture has to be one of ours.
pub(super) fn check(model: &Model, file: &File, is_ours: bool, options: &Options) -> Result<LevelReport, VerifyError> {
    let parts: Vec<_> = model
        .parts()
        .iter()
        .filter_map(|part| Some((part, part.parse().ok()?)))
        .collect();
    let (mut checks, mut not_checked) = (vec![readable(&parts)], vec![]);
    match second_reader::check(&parts) {
        Ok(check) => checks.push(check),
        Err(why) => not_checked.push(NotChecked::new("gguf-rs-lib", why)),
    }
    match is_ours {
        true => checks.push(shape(file)),
        false => not_checked.push(NotChecked::new(
            CheckId::Tensors.name(),
            "tqconv does not know the architecture: they are those of the file that it was packed from",
        )),
    }
    checks.extend(file_type(file));
    checks.push(tokenizer::check(file));
    let finite = finite::check(file);
    let sound = checks.iter().all(|check| check.pass) && finite.pass;
    checks.push(finite);
    ggml::check(&parts, &options.witness, sound, &mut checks, &mut not_checked)?;
    if options.for_ollama {
        checks.extend(ollama::checks(file, parts.len()));
    }
    Ok(LevelReport::new(Level::Layout, checks, not_checked))
}

/// The level of a file that our own reader does not accept.
pub(super) fn unreadable(error: &OpenError) -> LevelReport {
    let check = Check::no_problems(CheckId::OurReader, [error.to_string()], 1, "file", READER);
    LevelReport::new(Level::Layout, vec![check], vec![])
}

const READER: &str = "llama.cpp refuses the file otherwise (gguf.cpp)";

/// A file of the model, and what it holds.
type Parsed<'a> = (&'a Part, File<'a>);

/// That it was read is known; whether anything follows what was read is not.
fn readable(parts: &[Parsed]) -> Check {
    let surplus = |(part, file): &Parsed| {
        let end = file.tensors().iter().fold(0, |end: u64, info| {
            (end + info.bytes().unwrap_or(0)).next_multiple_of(file.alignment())
        });
        let surplus = (part.bytes.len() as u64).saturating_sub(file.data_start() + end);
        (surplus > 0).then(|| format!("{surplus} bytes follow the last tensor"))
    };
    Check::no_problems(
        CheckId::OurReader,
        parts.iter().filter_map(surplus),
        parts.iter().map(|(_, file)| file.tensors().len() as u64).sum(),
        "tensors",
        READER,
    )
}

/// Tensors and keys.
fn things(file: &File) -> u64 {
    (file.tensors().len() + file.metadata().len()) as u64
}

/// Every tensor that the architecture needs, none that it does not know, each of the right shape, biases and norms in F32.
fn shape(file: &File) -> Check {
    let problem = Hyper::read(file).err().map(|error| error.to_string());
    Check::no_problems(
        CheckId::Tensors,
        problem,
        file.tensors().len() as u64,
        "tensors",
        "llama.cpp refuses or aborts otherwise (src/models)",
    )
}

/// Where the file says what its type is: some tensor is of it. Of the kinds of file that llama.h numbers
/// (`llama_ftype`), those that have one type for most matrices and are written by `pack`.
fn file_type(file: &File) -> Option<Check> {
    let id = file.get("general.file_type")?.as_u32()?;
    let named = BlockType::from_file_type(id)?;
    let found = file.tensors().iter().any(|info| info.ty == named);
    let problem = (!found).then(|| format!("key 'general.file_type' is {id}, which is {named}, and no tensor is"));
    Some(Check::no_problems(
        CheckId::FileType,
        problem,
        1,
        "keys",
        "readers show it (llama.h, llama_ftype)",
    ))
}
