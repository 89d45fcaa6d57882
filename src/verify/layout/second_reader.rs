//! The file as gguf-rs-lib reads it.

use std::io::Cursor;

use formats::gguf::{Array, File, Value};
use gguf_rs_lib::format::metadata::{MetadataArray, MetadataValue};
use gguf_rs_lib::reader::GGUFFileReader;

use super::super::report::{Check, CheckId};
use super::{Parsed, things};

/// gguf-rs-lib reads each file, and finds in it what we find.
///
/// # Errors
/// Why it cannot be asked: it takes no key with a hyphen, as those of llama.cpp's `hunyuan-dense` have one.
pub fn check(parts: &[Parsed]) -> Result<Check, String> {
    let mut keys = parts.iter().flat_map(|(_, file)| file.metadata());
    if let Some((key, _)) = keys.find(|(key, _)| key.contains('-')) {
        return Err(format!("gguf-rs-lib takes no key with a hyphen, such as '{key}'"));
    }
    let problems = |(part, file): &Parsed| match GGUFFileReader::new(Cursor::new(&*part.bytes)) {
        Err(error) => vec![format!("gguf-rs-lib: {error}")],
        Ok(mut reader) => match reader.validate_integrity() {
            Err(error) => vec![format!("gguf-rs-lib: {error}")],
            Ok(()) => differences(&reader, file),
        },
    };
    Ok(Check::no_problems(
        CheckId::SecondReader,
        parts.iter().flat_map(problems),
        parts.iter().map(|(_, file)| things(file)).sum(),
        "tensors and keys",
        "an independent reader",
    ))
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
