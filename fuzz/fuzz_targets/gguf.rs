//! The GGUF reader, and what compares its tensors with its hyper-parameters. What is accepted lies within the file.
#![no_main]

use formats::gguf::File;
use libfuzzer_sys::fuzz_target;
use tqconv::engine::hyper::Hyper;

fuzz_target!(|data: &[u8]| {
    use tqconv_fuzz as _;
    let Ok(file) = File::parse(data) else { return };
    assert!(file.data_start() <= data.len() as u64);
    for info in file.tensors() {
        let (found, bytes) = file.tensor(&info.name).expect("it is listed");
        assert_eq!(Some(bytes.len() as u64), found.bytes());
        assert!(info.rows().checked_mul(info.columns()).is_some());
        if let Some(columns) = usize::try_from(info.columns()).ok().filter(|_| !bytes.is_empty()) {
            let row = &bytes[..info.ty.row_bytes(columns).expect("whole blocks")];
            let _ = info.ty.dequantize_row(row, &mut vec![0.0; columns]);
        }
    }
    let _ = Hyper::read(&file);
});
