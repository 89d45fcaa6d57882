//! What a GGUF file holds: `cargo run -p tqconv-formats --example tensors MODEL.gguf [TENSOR]`
//!
//! Prints the type, shape and size of each tensor; with TENSOR, the first weights of its first row.

use std::error::Error;

use formats::gguf::File;
use tqconv_formats as formats;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: tensors MODEL.gguf [TENSOR]")?;
    let bytes = std::fs::read(&path)?;
    let file = File::parse(&bytes)?;
    match arguments.next() {
        None => list(&file),
        Some(name) => first_weights(&file, &name)?,
    }
    Ok(())
}

fn list(file: &File) {
    for info in file.tensors() {
        let bytes = info.bytes().unwrap_or(0);
        println!("{:40} {:6} {:?} {bytes} bytes", info.name, info.ty.name(), info.shape);
    }
}

fn first_weights(file: &File, name: &str) -> Result<(), Box<dyn Error>> {
    let (info, bytes) = file.tensor(name).ok_or("no tensor of this name")?;
    let columns = usize::try_from(info.columns())?;
    let row = info.ty.row_bytes(columns).ok_or("rows are not whole blocks")?;
    let mut weights = vec![0.0; columns];
    info.ty.dequantize_row(&bytes[..row], &mut weights)?;
    println!("{:?}", &weights[..columns.min(8)]);
    Ok(())
}
