//! The safetensors header. What we accept, the `safetensors` crate accepts too, with the same tensors.
#![no_main]

use std::collections::BTreeMap;

use formats::safetensors::{looks_like, parse};
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;

fuzz_target!(|data: &[u8]| {
    use tqconv_fuzz as _;
    looks_like(data);
    let Ok(entries) = parse(data) else { return };
    let theirs = SafeTensors::deserialize(data).expect("the crate accepts what we accept");
    let theirs: BTreeMap<_, _> = theirs.iter().collect();
    assert_eq!(entries.len(), theirs.len());
    for entry in &entries {
        let tensor = &theirs[entry.name.as_str()];
        assert_eq!(entry.view(data).bytes, tensor.data());
        assert_eq!(entry.shape, tensor.shape());
    }
});
