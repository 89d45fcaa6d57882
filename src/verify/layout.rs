//! Level 1: whether the file keeps to llama.cpp's rules, as three readers see it: ours, gguf-rs-lib, and ggml's own.

use std::io::Cursor;

use formats::block::BlockType;
use formats::gguf::{Array, File, TensorInfo, Value};
use gguf_rs_lib::format::metadata::{MetadataArray, MetadataValue};
use gguf_rs_lib::reader::GGUFFileReader;
use rayon::prelude::*;

use super::ollama;
use super::report::{Check, Level, NotChecked, SHOWN};
use super::{Options, VerifyError, witness};
use crate::engine::hyper::Hyper;
use crate::mapped::{Model, OpenError, Part};
use crate::witness::{Program, Witness, WitnessError, pieces};

pub(super) const NUMBER: u8 = 1;
pub(super) const NAME: &str = "layout";

/// All checks of the level. `file`: what `model` holds.
pub(super) fn check(model: &Model, file: &File, options: &Options) -> Result<Level, VerifyError> {
    let parts: Vec<_> = model
        .parts()
        .iter()
        .filter_map(|part| Some((part, part.parse().ok()?)))
        .collect();
    let (mut checks, mut not_checked) = (vec![readable(&parts)], vec![]);
    match file.metadata().iter().find(|(key, _)| key.contains('-')) {
        None => checks.push(second_reader(&parts)),
        Some((key, _)) => {
            let why = format!("it takes no key with a hyphen, such as '{key}'");
            not_checked.push(NotChecked::new(SECOND, why));
        }
    }
    checks.push(shape(file));
    checks.extend(file_type(file));
    checks.push(tokenizer_keys(file));
    let finite = finite(file);
    let sound = checks.iter().all(|check| check.pass) && finite.pass;
    checks.push(finite);
    let mut ggml = Ggml {
        parts: &parts,
        checks: &mut checks,
        not_checked: &mut not_checked,
    };
    ggml.check(&options.witness, sound)?;
    if options.for_ollama {
        checks.extend(ollama::checks(file, parts.len()));
    }
    Ok(Level::new(NUMBER, NAME, checks, not_checked))
}

/// The level of a file that our own reader does not accept.
pub(super) fn unreadable(error: &OpenError) -> Level {
    let check = Check::no_problems("our reader", vec![error.to_string()], 1, "file", READER);
    Level::new(NUMBER, NAME, vec![check], vec![])
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
        "our reader",
        parts.iter().filter_map(surplus).collect(),
        parts.iter().map(|(_, file)| file.tensors().len() as u64).sum(),
        "tensors",
        READER,
    )
}

const SECOND: &str = "gguf-rs-lib agrees";

/// gguf-rs-lib reads each file, and finds in it what we find.
fn second_reader(parts: &[Parsed]) -> Check {
    let problems = |(part, file): &Parsed| match GGUFFileReader::new(Cursor::new(&*part.bytes)) {
        Err(error) => vec![format!("gguf-rs-lib: {error}")],
        Ok(mut reader) => match reader.validate_integrity() {
            Err(error) => vec![format!("gguf-rs-lib: {error}")],
            Ok(()) => differences(&reader, file),
        },
    };
    Check::no_problems(
        SECOND,
        parts.iter().flat_map(problems).collect(),
        parts.iter().map(|(_, file)| things(file)).sum(),
        "tensors and keys",
        "an independent reader",
    )
}

/// Tensors and keys.
fn things(file: &File) -> u64 {
    (file.tensors().len() + file.metadata().len()) as u64
}

fn differences(reader: &GGUFFileReader<Cursor<&[u8]>>, file: &File) -> Vec<String> {
    let mut problems = vec![];
    let theirs = reader.tensor_infos();
    if theirs.len() != file.tensors().len() {
        problems.push(format!(
            "gguf-rs-lib finds {} tensors, we find {}",
            theirs.len(),
            file.tensors().len()
        ));
    }
    let mut end = 0;
    for (info, theirs) in file.tensors().iter().zip(theirs) {
        let same = theirs.name() == info.name
            && theirs.shape().dims() == info.shape
            && theirs.tensor_type() as u32 == info.ty.id()
            && theirs.data_offset() == end
            && theirs.checked_expected_data_size().ok() == info.bytes();
        if !same {
            problems.push(format!(
                "tensor '{}' ({} {:?} at {end}) is '{}' ({:?} {:?} at {}) to gguf-rs-lib",
                info.name,
                info.ty,
                info.shape,
                theirs.name(),
                theirs.tensor_type(),
                theirs.shape().dims(),
                theirs.data_offset()
            ));
        }
        end += info.bytes().unwrap_or(0);
        end = end.next_multiple_of(file.alignment());
    }
    for (key, value) in file.metadata() {
        if !reader.metadata().get(key).is_some_and(|theirs| same(value, theirs)) {
            problems.push(format!(
                "key '{key}' is read differently, or not at all, by gguf-rs-lib"
            ));
        }
    }
    problems
}

/// Whether both readers see the same value of the same type.
fn same(ours: &Value, theirs: &MetadataValue) -> bool {
    match (ours, theirs) {
        (Value::U8(a), MetadataValue::U8(b)) => a == b,
        (Value::I8(a), MetadataValue::I8(b)) => a == b,
        (Value::U16(a), MetadataValue::U16(b)) => a == b,
        (Value::I16(a), MetadataValue::I16(b)) => a == b,
        (Value::U32(a), MetadataValue::U32(b)) => a == b,
        (Value::I32(a), MetadataValue::I32(b)) => a == b,
        (Value::F32(a), MetadataValue::F32(b)) => a.to_bits() == b.to_bits(),
        (Value::U64(a), MetadataValue::U64(b)) => a == b,
        (Value::I64(a), MetadataValue::I64(b)) => a == b,
        (Value::F64(a), MetadataValue::F64(b)) => a.to_bits() == b.to_bits(),
        (Value::Bool(a), MetadataValue::Bool(b)) => a == b,
        (Value::String(a), MetadataValue::String(b)) => a == b,
        (Value::Array(a), MetadataValue::Array(b)) => same_array(a, b),
        _ => false,
    }
}

fn same_array(ours: &Array, theirs: &MetadataArray) -> bool {
    fn all<T>(ours: &[T], theirs: &[MetadataValue], wrap: impl Fn(&T) -> Value) -> bool {
        ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| same(&wrap(ours), theirs))
    }
    let theirs = &theirs.values;
    match ours {
        Array::U8(values) => all(values, theirs, |v| Value::U8(*v)),
        Array::I8(values) => all(values, theirs, |v| Value::I8(*v)),
        Array::U16(values) => all(values, theirs, |v| Value::U16(*v)),
        Array::I16(values) => all(values, theirs, |v| Value::I16(*v)),
        Array::U32(values) => all(values, theirs, |v| Value::U32(*v)),
        Array::I32(values) => all(values, theirs, |v| Value::I32(*v)),
        Array::F32(values) => all(values, theirs, |v| Value::F32(*v)),
        Array::U64(values) => all(values, theirs, |v| Value::U64(*v)),
        Array::I64(values) => all(values, theirs, |v| Value::I64(*v)),
        Array::F64(values) => all(values, theirs, |v| Value::F64(*v)),
        Array::Bool(values) => all(values, theirs, |v| Value::Bool(*v)),
        Array::String(values) => all(values, theirs, |v| Value::String(v.clone())),
    }
}

/// Every tensor that the architecture needs, none that it does not know, each of the right shape, biases and norms in F32.
fn shape(file: &File) -> Check {
    let problems = Hyper::read(file)
        .err()
        .map(|error| error.to_string())
        .into_iter()
        .collect();
    Check::no_problems(
        "the architecture's tensors",
        problems,
        file.tensors().len() as u64,
        "tensors",
        "llama.cpp refuses or aborts otherwise (src/models)",
    )
}

/// Where the file says what its type is: some tensor is of it. Of the kinds of file that llama.h numbers
/// (`llama_ftype`), those that have one type for most matrices and are written by `pack`.
fn file_type(file: &File) -> Option<Check> {
    let id = file.get("general.file_type")?.as_u32()?;
    let named = match id {
        0 => BlockType::F32,
        1 => BlockType::F16,
        2 => BlockType::Q4_0,
        7 => BlockType::Q8_0,
        10 => BlockType::Q2_K,
        32 => BlockType::BF16,
        36 => BlockType::TQ1_0,
        37 => BlockType::TQ2_0,
        41 => BlockType::Q2_0,
        _ => return None,
    };
    let found = file.tensors().iter().any(|info| info.ty == named);
    let problem = (!found).then(|| format!("key 'general.file_type' is {id}, which is {named}, and no tensor is"));
    Some(Check::no_problems(
        "file type",
        problem.into_iter().collect(),
        1,
        "keys",
        "readers show it (llama.h, llama_ftype)",
    ))
}

/// The keys of the tokenizer in the types that llama.cpp demands, and consistent with each other (llama-vocab.cpp).
fn tokenizer_keys(file: &File) -> Check {
    let mut keys = TokenizerKeys {
        file,
        problems: vec![],
        checked: 0,
    };
    keys.check();
    Check::no_problems(
        "tokenizer keys",
        keys.problems,
        keys.checked,
        "keys",
        "llama.cpp throws otherwise (llama-vocab.cpp)",
    )
}

struct TokenizerKeys<'a> {
    file: &'a File<'a>,
    problems: Vec<String>,
    checked: u64,
}

impl<'a> TokenizerKeys<'a> {
    fn check(&mut self) {
        let tokens = self.required("tokens", "array of string").map(length);
        let model = self
            .required("model", "string")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let tokens = tokens.unwrap_or(0);
        match model {
            "gpt2" => {
                self.required("merges", "array of string");
                self.required("pre", "string");
                self.merges();
            }
            "llama" => {
                let scores = self.required("scores", "array of f32").map(length);
                self.one_for_each_token("scores", scores, tokens);
            }
            other => self.problem("model", format!("{other:?}, expected \"gpt2\" or \"llama\"")),
        }
        let types = self.required("token_type", "array of i32").map(length);
        self.one_for_each_token("token_type", types, tokens);
        for name in ["bos", "eos", "unknown", "padding"] {
            let key = format!("{name}_token_id");
            let id = self.optional(&key, "u32").and_then(Value::as_u32);
            if let Some(id) = id.filter(|&id| id as usize >= tokens) {
                self.problem(&key, format!("{id}, the vocabulary has {tokens} tokens"));
            }
        }
        for name in ["add_bos_token", "add_eos_token", "add_space_prefix"] {
            self.optional(name, "bool");
        }
    }

    /// Each is two tokens with a space between them.
    fn merges(&mut self) {
        let merges = self.get("merges").and_then(Value::as_strings);
        let broken = merges
            .unwrap_or_default()
            .iter()
            .position(|merge| merge.split(' ').filter(|part| !part.is_empty()).count() != 2);
        if let (Some(at), Some(merges)) = (broken, merges) {
            let found = format!("{:?} at {at}, expected two tokens and a space", merges[at]);
            self.problem("merges", found);
        }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.file.get(&format!("tokenizer.ggml.{name}"))
    }

    fn required(&mut self, name: &str, ty: &str) -> Option<&'a Value> {
        if self.get(name).is_none() {
            self.checked += 1;
            self.problem(name, format!("absent, expected {ty}"));
        }
        self.optional(name, ty)
    }

    fn optional(&mut self, name: &str, ty: &str) -> Option<&'a Value> {
        let found = self.get(name)?.type_name();
        self.checked += 1;
        if found == ty {
            return self.get(name);
        }
        self.problem(name, format!("of type {found}, expected {ty}"));
        None
    }

    fn one_for_each_token(&mut self, name: &str, found: Option<usize>, tokens: usize) {
        if let Some(found) = found.filter(|&found| found != tokens) {
            self.problem(name, format!("a list of {found}, the vocabulary has {tokens} tokens"));
        }
    }

    fn problem(&mut self, name: &str, found: String) {
        self.problems.push(format!("key 'tokenizer.ggml.{name}' is {found}"));
    }
}

fn length(value: &Value) -> usize {
    match value {
        Value::Array(array) => array.len(),
        _ => 0,
    }
}

/// No weight, scale, norm or bias is NaN or infinite.
fn finite(file: &File) -> Check {
    let mut problems = vec![];
    let mut wrong = 0;
    for info in file.tensors() {
        match first_not_finite(file, info) {
            Ok(None) => continue,
            Ok(Some((row, column, value))) => {
                problems.push(format!("tensor '{}' row {row} column {column} is {value}", info.name))
            }
            Err(error) => problems.push(format!("tensor '{}': {error}", info.name)),
        }
        wrong += 1;
        if problems.len() > SHOWN {
            break;
        }
    }
    Check::none_differ(
        "finite numbers",
        wrong,
        file.tensors().len() as u64,
        "tensors",
        "one NaN makes every logit a NaN",
    )
    .with_details(problems)
}

/// (row, column, value) of the first number of a tensor that is NaN or infinite.
fn first_not_finite(file: &File, info: &TensorInfo) -> Result<Option<(usize, usize, f32)>, formats::block::BlockError> {
    let Some((columns, row_bytes, bytes)) = rows(file, info) else {
        return Ok(None);
    };
    bytes
        .par_chunks_exact(row_bytes)
        .enumerate()
        .map_init(
            || vec![0.0; columns],
            |numbers, (row, bytes)| {
                info.ty.dequantize_row(bytes, numbers)?;
                // A sum of finite f64 stays finite here, and is much faster than a test of each.
                let sum: f64 = numbers.iter().map(|&w| f64::from(w)).sum();
                let column = (!sum.is_finite())
                    .then(|| numbers.iter().position(|w| !w.is_finite()))
                    .flatten();
                Ok(column.map(|column| (row, column, numbers[column])))
            },
        )
        .find_first(|found| !matches!(found, Ok(None)))
        .unwrap_or(Ok(None))
}

/// Columns, bytes of a row, and all bytes; `None` for a tensor without numbers.
fn rows<'a>(file: &File<'a>, info: &TensorInfo) -> Option<(usize, usize, &'a [u8])> {
    // Without numbers a row may have any width.
    let (_, bytes) = file.tensor(&info.name).filter(|(_, bytes)| !bytes.is_empty())?;
    let columns = usize::try_from(info.columns()).ok()?;
    let row_bytes = info.ty.row_bytes(columns)?;
    Some((columns, row_bytes, bytes))
}

/// What ggml says of the files.
struct Ggml<'a> {
    parts: &'a [Parsed<'a>],
    checks: &'a mut Vec<Check>,
    not_checked: &'a mut Vec<NotChecked>,
}

impl Ggml<'_> {
    const READER: &'static str = "ggml's reader";
    const BLOCKS: &'static str = "ggml's rules for blocks";

    /// Its reader, then its rules for blocks, by one child.
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
            Err(error) => return self.failed(Self::READER, error),
        };
        if !sound {
            // ggml names the place on stderr, which we have done in the failed check.
            let why = "the file does not keep to the rules above";
            self.not_checked.push(NotChecked::new(Self::BLOCKS, why));
            return Ok(());
        }
        match self.blocks(&mut witness) {
            Ok(check) => self.checks.push(check),
            Err(error) => return self.failed(Self::BLOCKS, error),
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
            Self::READER,
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
            Self::BLOCKS,
            problems,
            count,
            "tensors",
            "llama.cpp --check-tensors (ggml-quants.c)",
        ))
    }

    fn failed(&mut self, what: &str, error: WitnessError) -> Result<(), VerifyError> {
        witness::failed(what, error, self.checks, self.not_checked)
    }
}
