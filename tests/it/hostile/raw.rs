//! GGUF files written field by field, so that each field can be wrong; among them the cases of llama.cpp's own
//! tests/test-gguf.cpp, by the names that they have there.

use formats::block::BlockType;

/// A GGUF file in the making.
pub struct Raw {
    pub magic: [u8; 4],
    pub version: u32,
    /// Over the number of tensors.
    pub tensor_count: Option<u64>,
    /// Over the number of keys.
    pub key_count: Option<u64>,
    pub alignment: u64,
    /// Bytes of data after the padding.
    pub data: u64,
    pub keys: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            key_count: None,
            alignment: 32,
            data: 0,
            keys: vec![],
            tensors: vec![],
        }
    }
}

pub fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}

impl Raw {
    /// A key of value type `ty` whose value is `value`.
    pub fn key(mut self, name: &str, ty: u32, value: &[u8]) -> Self {
        let mut key = string(name.as_bytes());
        key.extend(ty.to_le_bytes());
        key.extend(value);
        self.keys.push(key);
        self
    }

    /// A key that is these bytes.
    pub fn raw_key(mut self, bytes: Vec<u8>) -> Self {
        self.keys.push(bytes);
        self
    }

    pub fn tensor(mut self, name: &[u8], shape: &[i64], ty: u32, offset: u64) -> Self {
        let mut tensor = string(name);
        tensor.extend((shape.len() as u32).to_le_bytes());
        tensor.extend(shape.iter().flat_map(|n| n.to_le_bytes()));
        tensor.extend(ty.to_le_bytes());
        tensor.extend(offset.to_le_bytes());
        self.tensors.push(tensor);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        let tensors = self.tensor_count.unwrap_or(self.tensors.len() as u64);
        let keys = self.key_count.unwrap_or(self.keys.len() as u64);
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        bytes.extend(self.keys.concat());
        bytes.extend(self.tensors.concat());
        let padded = (bytes.len() as u64).next_multiple_of(self.alignment) + self.data;
        bytes.resize(padded as usize, 0);
        bytes
    }
}

/// An array value: the id of its values' type, their number, and they.
fn array(ty: u32, count: u64, values: &[u8]) -> Vec<u8> {
    let mut bytes = ty.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(values);
    bytes
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;
/// Value types with their sizes in bytes.
const NUMBERS: [(u32, usize); 11] = [
    (0, 1),
    (1, 1),
    (2, 2),
    (3, 2),
    (4, 4),
    (5, 4),
    (6, 4),
    (7, 1),
    (10, 8),
    (11, 8),
    (12, 8),
];

/// A key of every type, and an array of every type.
fn with_keys(mut raw: Raw, name: impl Fn(usize) -> String, over_type: Option<u32>) -> Raw {
    let bytes: Vec<u8> = (1..=64).collect();
    let mut count = 0;
    let mut next = || {
        count += 1;
        name(count - 1)
    };
    for (ty, size) in NUMBERS {
        raw = raw.key(&next(), over_type.unwrap_or(ty), &bytes[..size]);
        raw = raw.key(&next(), over_type.unwrap_or(ARRAY), &array(ty, 3, &bytes[..3 * size]));
    }
    raw = raw.key(&next(), over_type.unwrap_or(STRING), &string(b"text"));
    let texts = [string(b"a"), string(b""), string(b"text")].concat();
    raw.key(&next(), over_type.unwrap_or(ARRAY), &array(STRING, 3, &texts))
}

/// A tensor of every type of ggml, with one to four dimensions.
fn shapes() -> Vec<(BlockType, Vec<i64>)> {
    let shape = |i: usize, ty: BlockType| {
        let mut shape = vec![(1 + i as i64 % 3) * ty.weights() as i64];
        shape.extend((0..i % 4).map(|dimension| 2 + dimension as i64));
        shape
    };
    BlockType::ALL
        .iter()
        .filter(|ty| !ty.is_prism())
        .enumerate()
        .map(|(i, &ty)| (ty, shape(i, ty)))
        .collect()
}

fn size(ty: BlockType, shape: &[i64]) -> u64 {
    let weights: i64 = shape.iter().product();
    weights as u64 / ty.weights() as u64 * ty.bytes() as u64
}

/// One case.
pub struct Handcrafted {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    /// What the refusal says; `None`: the file is accepted.
    pub refusal: Option<&'static str>,
}

impl Handcrafted {
    /// Whether llama.cpp's test reads the data, too.
    #[cfg(feature = "llama")]
    pub fn has_data(&self) -> bool {
        self.name.starts_with("DATA")
    }
}

/// All 33, in llama.cpp's order. Every file has its data, so that none is refused for want of them.
pub fn handcrafted() -> Vec<Handcrafted> {
    let mut cases = vec![];
    let mut case = |name, refusal, raw: Raw| {
        let bytes = raw.bytes();
        cases.push(Handcrafted { name, bytes, refusal });
    };
    let header = Raw::default;
    case(
        "HEADER_BAD_MAGIC",
        Some("a big-endian GGUF file"),
        Raw {
            magic: *b"FUGG",
            ..header()
        },
    );
    case(
        "HEADER_BAD_VERSION_0",
        Some("GGUF version 0"),
        Raw { version: 0, ..header() },
    );
    case("HEADER_BAD_VERSION_1", Some("given up"), Raw { version: 1, ..header() });
    case(
        "HEADER_BAD_VERSION_FUTURE",
        Some("newer"),
        Raw { version: 4, ..header() },
    );
    case(
        "HEADER_BAD_N_KV",
        Some("the number of keys is 18446744073709551615"),
        Raw {
            key_count: Some(u64::MAX),
            ..header()
        },
    );
    case(
        "HEADER_BAD_N_TENSORS",
        Some("the number of tensors is 18446744073709551615"),
        Raw {
            tensor_count: Some(u64::MAX),
            ..header()
        },
    );
    case("HEADER_EMPTY", None, header());

    let name = |i: usize| format!("my_key_{i}");
    let keys = || with_keys(Raw::default(), name, None);
    let aligned = |raw: Raw, alignment: u32| Raw {
        alignment: if alignment == 1 { 1 } else { 32 },
        ..raw.key("general.alignment", 4, &alignment.to_le_bytes())
    };
    let endless = [&u64::MAX.to_le_bytes()[..], b"my_key"].concat();
    case(
        "KV_BAD_KEY_SIZE",
        Some("the length of the name of key 24"),
        keys().raw_key(endless),
    );
    case(
        "KV_EMPTY_KEY",
        Some("is empty"),
        with_keys(header(), |_| String::new(), None),
    );
    case(
        "KV_BAD_TYPE",
        Some("value type 13"),
        with_keys(header(), name, Some(13)),
    );
    case(
        "KV_DUPLICATE_KEY",
        Some("'my_key_0' is duplicated"),
        with_keys(header(), |i| name(i / 2), None),
    );
    case("KV_BAD_ALIGN", Some("13 (u32)"), aligned(keys(), 13));
    let wrong_type = keys().key("general.alignment", 5, &32i32.to_le_bytes());
    case("KV_WRONG_TYPE_ALIGN", Some("32 (i32)"), wrong_type);
    case("KV_SUCCESS", None, keys());

    let tensor_name = |i: usize| format!("my_tensor_{i}").into_bytes();
    // Every tensor of `shapes`, each changed by `change`; offsets at `alignment`, data for all of them.
    let tensors = |raw: Raw, alignment: u64, change: &dyn Fn(usize, &mut Changed)| {
        let mut raw = raw;
        let mut offset = 0u64;
        for (i, (ty, shape)) in shapes().into_iter().enumerate() {
            let bytes = size(ty, &shape);
            let mut changed = Changed {
                name: tensor_name(i),
                shape,
                ty: ty.id(),
                offset,
            };
            change(i, &mut changed);
            raw = raw.tensor(&changed.name, &changed.shape, changed.ty, changed.offset);
            offset += if changed.shape.contains(&0) {
                0
            } else {
                bytes.next_multiple_of(alignment)
            };
        }
        Raw { data: offset, ..raw }
    };
    let plain = |_: usize, _: &mut Changed| ();
    let infos = |change: &dyn Fn(usize, &mut Changed)| tensors(keys(), 32, change);
    let too_long = "_with_a_very_long_name_which_is_longer_than_what_is_allowed_for_ggml_tensors";
    case(
        "TENSORS_BAD_NAME_SIZE",
        Some("longer than 63 bytes"),
        infos(&|_, t| t.name.extend(too_long.bytes())),
    );
    case(
        "TENSORS_BAD_N_DIMS",
        Some("the number of dimensions"),
        infos(&|_, t| t.shape = vec![t.shape[0], 1, 1, 1, 1]),
    );
    case("TENSORS_BAD_SHAPE", Some("negative"), infos(&|_, t| t.shape.fill(-1)));
    case("TENSORS_ZERO_DIM", None, infos(&|_, t| t.shape = vec![t.shape[0], 0]));
    case(
        "TENSORS_NE_TOO_BIG",
        Some("does not fit 63 bits"),
        infos(&|_, t| t.shape = vec![4 * i64::from(i32::MAX); 2]),
    );
    let too_many_bytes = |_: usize, t: &mut Changed| {
        t.ty = BlockType::I64.id();
        t.shape = vec![(1.01 * (u64::MAX as f64 / 8.0).sqrt()) as i64; 2];
    };
    case(
        "TENSORS_NBYTES_TOO_BIG",
        Some("do not fit 64 bits"),
        infos(&too_many_bytes),
    );
    case("TENSORS_BAD_TYPE", Some("type id 43"), infos(&|_, t| t.ty = 43));
    case(
        "TENSORS_BAD_OFFSET",
        Some("at offset 18446744073709551615, expected 0"),
        infos(&|_, t| t.offset = u64::MAX),
    );
    case(
        "TENSORS_DUPLICATE_NAME",
        Some("'my_tensor' is duplicated"),
        infos(&|_, t| t.name = b"my_tensor".to_vec()),
    );
    case("TENSORS_BAD_ALIGN", Some("13 (u32)"), aligned(infos(&plain), 13));
    case(
        "TENSORS_INCONSISTENT_ALIGN",
        Some("is at offset"),
        tensors(keys(), 1, &plain),
    );
    case("TENSORS_SUCCESS", None, infos(&plain));
    case("TENSORS_CUSTOM_ALIGN", None, aligned(tensors(keys(), 1, &plain), 1));

    let whole = tensors(keys(), 32, &plain);
    // The last byte of the last tensor, not of the padding after it: see docs/bad-input.md.
    let (last, shape) = shapes().pop().expect("there are types");
    let padding = size(last, &shape).next_multiple_of(32) - size(last, &shape);
    case(
        "DATA_NOT_ENOUGH_DATA",
        Some("the file ends at"),
        Raw {
            data: whole.data - padding - 1,
            ..whole
        },
    );
    case(
        "DATA_BAD_ALIGN",
        Some("13 (u32)"),
        aligned(tensors(keys(), 32, &plain), 13),
    );
    case(
        "DATA_INCONSISTENT_ALIGN",
        Some("is at offset"),
        tensors(keys(), 1, &plain),
    );
    let huge = 0x7fff_ffff_ffff_ffc0;
    let overflowing = keys().tensor(b"my_tensor_0", &[huge], BlockType::I8.id(), 0).tensor(
        b"my_tensor_1",
        &[huge],
        BlockType::I8.id(),
        huge as u64,
    );
    case(
        "DATA_MEM_SIZE_OVERFLOW",
        Some("the file ends at"),
        Raw {
            data: 32,
            ..overflowing
        },
    );
    case("DATA_SUCCESS", None, tensors(keys(), 32, &plain));
    case("DATA_CUSTOM_ALIGN", None, aligned(tensors(keys(), 1, &plain), 1));
    cases
}

/// What a case may change in a tensor.
struct Changed {
    name: Vec<u8>,
    shape: Vec<i64>,
    ty: u32,
    offset: u64,
}
