//! Block codecs against ggml itself, bit for bit: the type table, dequantization of any bytes, what
//! ggml reads from packed blocks, and the quantizers. Also the maker of `fixtures/blocks`, which
//! carries the same proof into the crate `formats` without C++.
//!
//! Equality of f32 results holds where the C compiler does not fuse `a * b + c`, which is so on
//! x86-64: ggml's reference code is compiled for the baseline CPU there.

use formats::block::{BlockType, q2_0, q2_k, q4_0, q8_0, removed_name, tq1_0, tq2_0};
use half::{bf16, f16};
use std::path::PathBuf;
use std::{array, fs};

/// Types with `dequantize_row` and a counterpart in ggml (which has none for F32).
const READ: [BlockType; 10] = [
    BlockType::F16,
    BlockType::BF16,
    BlockType::Q4_0,
    BlockType::Q8_0,
    BlockType::Q2_K,
    BlockType::Q4_K,
    BlockType::Q6_K,
    BlockType::TQ1_0,
    BlockType::TQ2_0,
    BlockType::Q2_0,
];

/// Types with `quantize_row` and a counterpart in ggml.
const WRITTEN: [BlockType; 5] = [
    BlockType::F16,
    BlockType::BF16,
    BlockType::Q8_0,
    BlockType::Q4_K,
    BlockType::Q6_K,
];

/// Ternary containers whose ggml quantizer is exact on weights that are already ternary.
const EXACT_IN_GGML: [BlockType; 3] = [BlockType::TQ1_0, BlockType::TQ2_0, BlockType::Q2_0];

/// Weights of a test row: two blocks of the largest type.
const COLUMNS: usize = 512;

/// ggml, called with lengths that the type table has checked.
mod ggml {
    use super::BlockType;
    use llama_cpp_sys_2 as sys;
    use std::ffi::CStr;

    /// (name, weights, bytes) of a type id below `GGML_TYPE_COUNT`.
    pub fn layout(id: u32) -> (&'static str, usize, usize) {
        assert!(id < sys::GGML_TYPE_COUNT, "ggml has no type {id}");
        // SAFETY: the id is in the range of ggml's table; names are static C strings.
        unsafe {
            let name = CStr::from_ptr(sys::ggml_type_name(id));
            let weights = sys::ggml_blck_size(id);
            let bytes = sys::ggml_type_size(id);
            (name.to_str().unwrap(), weights as usize, bytes)
        }
    }

    pub fn type_count() -> u32 {
        sys::GGML_TYPE_COUNT
    }

    /// Whether ggml has a product of such weights on the CPU.
    pub fn has_cpu_product(ty: BlockType) -> bool {
        // SAFETY: the id is in the range of ggml's table, which is static.
        unsafe { (*sys::ggml_get_type_traits_cpu(ty.id())).vec_dot.is_some() }
    }

    /// `llama_ftype` of the types that a whole model can be packed in.
    pub const FILE_TYPES: [(u32, BlockType); 9] = [
        (sys::LLAMA_FTYPE_ALL_F32, BlockType::F32),
        (sys::LLAMA_FTYPE_MOSTLY_F16, BlockType::F16),
        (sys::LLAMA_FTYPE_MOSTLY_BF16, BlockType::BF16),
        (sys::LLAMA_FTYPE_MOSTLY_Q4_0, BlockType::Q4_0),
        (sys::LLAMA_FTYPE_MOSTLY_Q8_0, BlockType::Q8_0),
        (sys::LLAMA_FTYPE_MOSTLY_Q2_K, BlockType::Q2_K),
        (sys::LLAMA_FTYPE_MOSTLY_TQ1_0, BlockType::TQ1_0),
        (sys::LLAMA_FTYPE_MOSTLY_TQ2_0, BlockType::TQ2_0),
        (sys::LLAMA_FTYPE_MOSTLY_Q2_0, BlockType::Q2_0),
    ];

    pub fn dequantize(ty: BlockType, row: &[u8]) -> Vec<f32> {
        let (_, weights, bytes) = layout(ty.id());
        assert_eq!(row.len() % bytes, 0);
        let mut out = vec![f32::NAN; row.len() / bytes * weights];
        let aligned: Vec<u16> = (row.as_chunks().0.iter().copied()).map(u16::from_ne_bytes).collect();
        // SAFETY: ggml reads the blocks of `aligned`, whose f16 fields want an alignment of 2, and
        // writes the weights of exactly those blocks.
        unsafe {
            let traits = &*sys::ggml_get_type_traits(ty.id());
            let read = traits.to_float.expect("ggml reads this type");
            read(aligned.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64);
        }
        out
    }

    pub fn quantize(ty: BlockType, x: &[f32]) -> Vec<u8> {
        let (_, weights, bytes) = layout(ty.id());
        assert_eq!((x.len() % weights, bytes % 2), (0, 0));
        let mut row = vec![0xa5a5u16; x.len() / weights * bytes / 2];
        // SAFETY: `row` has the bytes of exactly the blocks of `x`, at an alignment of 2.
        unsafe {
            let traits = &*sys::ggml_get_type_traits(ty.id());
            let write = traits.from_float_ref.expect("ggml writes this type");
            write(x.as_ptr(), row.as_mut_ptr().cast(), x.len() as i64);
        }
        row.into_iter().flat_map(u16::to_ne_bytes).collect()
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same bytes on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    fn codes<const N: usize>(&mut self) -> [i8; N] {
        array::from_fn(|_| self.below(3) as i8 - 1)
    }

    /// Uniform in -1..1.
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// About normal, variance 1: the sum of 12 uniform numbers in -1/2..1/2.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform() / 2.0).sum()
    }
}

/// Offsets of the f16 numbers of a block.
fn f16_fields(ty: BlockType) -> &'static [usize] {
    match ty {
        BlockType::TQ1_0 => &[52],
        BlockType::TQ2_0 => &[64],
        BlockType::Q2_K => &[80, 82],
        BlockType::Q4_K => &[0, 2],
        BlockType::Q6_K => &[208],
        _ => &[0],
    }
}

/// zero, subnormal, smallest normal, ordinary, largest, infinite, NaN; each with both signs.
fn extreme_f16() -> impl Iterator<Item = u16> {
    [0, 1, 0x3ff, 0x400, 0x3c00, 0x3555, 0x7bff, 0x7c00, 0x7e01]
        .into_iter()
        .flat_map(|bits| [bits, bits | 0x8000])
}

fn row_bytes(ty: BlockType) -> usize {
    ty.row_bytes(COLUMNS).unwrap()
}

fn assert_reads_as_ggml(ty: BlockType, row: &[u8], case: &str) {
    let expected = ggml::dequantize(ty, row);
    let mut found = vec![f32::INFINITY; expected.len()];
    ty.dequantize_row(row, &mut found).unwrap();
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(
            found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
            "{ty} {case}: weight {i} is {found:e}, ggml says {expected:e}"
        );
    }
}

#[test]
fn the_type_table_is_ggml_s() {
    for id in 0..ggml::type_count() {
        let (name, weights, bytes) = ggml::layout(id);
        match BlockType::from_id(id) {
            Some(ty) => {
                assert!(ty.name().eq_ignore_ascii_case(name), "{id}: {ty}, {name}");
                assert_eq!((ty.weights(), ty.bytes()), (weights, bytes), "{ty}");
            }
            None => {
                assert_eq!((weights, bytes), (0, 0), "{id}: ggml knows {name}");
                let removed = removed_name(id).expect("a removed type has a name");
                assert!(name == "DEPRECATED" || name.contains(removed), "{id}: {name}");
            }
        }
    }
    let last = BlockType::ALL.iter().rfind(|ty| !ty.is_prism());
    assert_eq!(
        last.unwrap().id() + 1,
        ggml::type_count(),
        "the table ends where ggml's does"
    );
    let prism = BlockType::ALL.iter().filter(|ty| ty.is_prism());
    assert!(
        prism.map(|ty| ty.id()).all(|id| id > ggml::type_count()),
        "ids that ggml does not have"
    );
}

#[test]
fn products_and_file_types_are_ggml_s() {
    for &ty in BlockType::ALL {
        let multiplies = ty.id() < ggml::type_count() && ggml::has_cpu_product(ty);
        assert_eq!(ty.has_cpu_product(), multiplies, "{ty}");
        let numbered = ggml::FILE_TYPES.iter().find(|(_, named)| *named == ty);
        assert_eq!(ty.file_type(), numbered.map(|(number, _)| *number), "{ty}");
    }
}

#[test]
fn any_bytes_dequantize_as_in_ggml() {
    let mut random = Random(1);
    for ty in READ {
        for i in 0..200 {
            let row = random.bytes(row_bytes(ty));
            assert_reads_as_ggml(ty, &row, &format!("random row {i}"));
        }
        for bits in extreme_f16() {
            let mut row = random.bytes(row_bytes(ty));
            for block in row.chunks_mut(ty.bytes()) {
                for &at in f16_fields(ty) {
                    block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
                }
            }
            assert_reads_as_ggml(ty, &row, &format!("f16 {bits:#06x}"));
        }
        for byte in 0..=255 {
            let mut row = vec![byte; row_bytes(ty)];
            for block in row.chunks_mut(ty.bytes()) {
                for &at in f16_fields(ty) {
                    block[at..at + 2].copy_from_slice(&0x2e66u16.to_le_bytes());
                }
            }
            assert_reads_as_ggml(ty, &row, &format!("all bytes {byte:#04x}"));
        }
    }
}

#[test]
fn every_f16_and_bf16_converts_as_in_ggml() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    assert_reads_as_ggml(BlockType::F16, &all, "all f16");
    assert_reads_as_ggml(BlockType::BF16, &all, "all bf16");
}

#[test]
fn ggml_reads_packed_blocks_as_scale_times_code() {
    let mut random = Random(2);
    let finite = |bits: &u16| f16::from_bits(*bits).is_finite();
    let extreme: Vec<u16> = extreme_f16().filter(finite).collect();
    for i in 0..300 {
        let bits = match extreme.get(i) {
            Some(bits) => *bits,
            None => random.next() as u16 & 0xbfff, // finite
        };
        let d = f16::from_bits(bits);
        let multipliers: [u8; 16] = array::from_fn(|_| random.below(16) as u8);
        let codes: [i8; 256] = random.codes();
        check_packed(BlockType::Q2_K, &q2_k::pack(&codes, d, &multipliers), &codes, |i| {
            f64::from(d.to_f32()) * f64::from(multipliers[i / 16])
        });
        let one = |_| f64::from(d.to_f32());
        check_packed(BlockType::TQ1_0, &tq1_0::pack(&codes, d), &codes, one);
        check_packed(BlockType::TQ2_0, &tq2_0::pack(&codes, d), &codes, one);
        let codes: [i8; 64] = random.codes();
        check_packed(BlockType::Q2_0, &q2_0::pack(&codes, d), &codes, one);
        let codes: [i8; 32] = random.codes();
        check_packed(BlockType::Q4_0, &q4_0::pack(&codes, d), &codes, one);
        check_packed(BlockType::Q8_0, &q8_0::pack(&codes, d), &codes, one);
    }
}

/// ggml's weights are exactly `scale(i) * codes[i]`, without rounding.
fn check_packed(ty: BlockType, block: &[u8], codes: &[i8], scale: impl Fn(usize) -> f64) {
    let weights = ggml::dequantize(ty, block);
    assert_eq!(weights.len(), codes.len());
    for (i, (weight, code)) in weights.iter().zip(codes).enumerate() {
        let expected = scale(i) * f64::from(*code);
        assert_eq!(f64::from(*weight), expected, "{ty}: weight {i}");
    }
}

/// `scale * codes` as ggml quantizes it, with one scale for the whole row.
fn ternary_row_by_ggml(ty: BlockType, codes: &[i8], scale: f16) -> Vec<u8> {
    let weights: Vec<f32> = codes.iter().map(|code| scale.to_f32() * f32::from(*code)).collect();
    ggml::quantize(ty, &weights)
}

#[test]
fn packed_bytes_are_those_of_ggml_s_exact_quantizers() {
    let mut random = Random(3);
    for i in 0..300 {
        // A block with no active weight has no scale in ggml, hence the first code.
        let mut codes: [i8; 256] = random.codes();
        codes.as_chunks_mut::<64>().0.iter_mut().for_each(|run| run[0] = 1);
        let bits = 1 + random.below(0x7bff) as u16; // positive and finite
        let scale = f16::from_bits(bits);
        let packed = |ty| match ty {
            BlockType::TQ1_0 => tq1_0::pack(&codes, scale).to_vec(),
            BlockType::TQ2_0 => tq2_0::pack(&codes, scale).to_vec(),
            _ => {
                let runs = codes.as_chunks().0.iter();
                runs.flat_map(|codes| q2_0::pack(codes, scale)).collect()
            }
        };
        for ty in EXACT_IN_GGML {
            let expected = ternary_row_by_ggml(ty, &codes, scale);
            assert_eq!(packed(ty), expected, "{ty}, block {i}, scale {scale}");
        }
    }
}

/// Rows that reach every branch of the quantizers, with a name each.
fn rows_to_quantize(random: &mut Random) -> Vec<(String, Vec<f32>)> {
    let mut rows = Vec::new();
    let mut add = |name: &str, weight: &mut dyn FnMut(usize) -> f32| {
        rows.push((name.to_string(), (0..COLUMNS).map(weight).collect()));
    };
    for exponent in [-44, -38, -36, -30, -20, -15, -12, -9, -7, -5, -3, -2, 0, 1, 3] {
        for i in 0..20 {
            let size = 10f64.powi(exponent) as f32;
            add(&format!("normal 1e{exponent} row {i}"), &mut |_| random.normal() * size);
        }
    }
    for i in 0..50 {
        add(&format!("integers {i}"), &mut |_| random.below(255) as f32 - 127.0);
        add(&format!("halves {i}"), &mut |_| {
            (random.below(511) as f32 - 255.0) / 2.0
        });
        add(&format!("ternary {i}"), &mut |_| {
            (random.below(3) as f32 - 1.0) * 0.0123
        });
        add(&format!("ternary of 16 {i}"), &mut |j| {
            (random.below(3) as f32 - 1.0) * (j / 16 + 1) as f32
        });
        add(&format!("positive {i}"), &mut |_| random.uniform().abs() + 0.25);
        add(&format!("negative {i}"), &mut |_| -random.uniform().abs() - 0.25);
        add(&format!("bf16 {i}"), &mut |_| {
            bf16::from_f32(random.normal() * 0.02).to_f32()
        });
        add(&format!("sparse {i}"), &mut |_| {
            if random.below(40) == 0 { random.normal() } else { 0.0 }
        });
        add(&format!("zero runs {i}"), &mut |j| {
            if j / 16 % 3 == 0 { 0.0 } else { random.normal() }
        });
        add(&format!("one outlier {i}"), &mut |j| {
            if j == 77 { 900.0 } else { random.normal() * 1e-3 }
        });
        add(&format!("sizes {i}"), &mut |j| {
            random.normal() * 0.1f32.powi((j / 32) as i32 % 8)
        });
        add(&format!("any size {i}"), &mut |_| {
            random.uniform() * 10f32.powi(random.below(9) as i32 - 6)
        });
    }
    for value in [0.0, -0.0, 1.0, -1.0, 1e-15, 0.9e-15, 1e-40, -65504.0, 65504.0] {
        add(&format!("all {value:e}"), &mut |_| value);
        add(&format!("alternating {value:e}"), &mut |j| {
            if j % 2 == 0 { value } else { -value }
        });
        add(&format!("single {value:e}"), &mut |j| {
            if j == 300 { value } else { 0.0 }
        });
    }
    rows
}

#[test]
fn quantizers_write_ggml_s_bytes() {
    for (name, x) in rows_to_quantize(&mut Random(4)) {
        for ty in WRITTEN {
            let mut found = vec![0x5a; row_bytes(ty)];
            ty.quantize_row(&x, &mut found).unwrap();
            let expected = ggml::quantize(ty, &x);
            let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{ty}, {name}: first byte that differs");
        }
    }
}

#[test]
fn floats_round_as_in_ggml_at_every_tie() {
    // Between each two neighbours of the narrow type: the middle, and one f32 step to both sides.
    let around = |low: f32, high: f32| {
        let middle = (f64::from(low) + f64::from(high)) as f32 / 2.0;
        [low, middle.next_down(), middle, middle.next_up()]
    };
    let f16_ties =
        (0..0x7bff).flat_map(|bits| around(f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32()));
    let bf16_ties = (0..0x7f7f).flat_map(|bits: u32| {
        let low = bits << 16;
        [low, low + 0x7fff, low + 0x8000, low + 0x8001].map(f32::from_bits)
    });
    for (ty, ties) in [
        (BlockType::F16, f16_ties.collect::<Vec<_>>()),
        (BlockType::BF16, bf16_ties.collect()),
    ] {
        let x: Vec<f32> = ties.into_iter().flat_map(|x| [x, -x]).collect();
        let mut found = vec![0; 2 * x.len()];
        ty.quantize_row(&x, &mut found).unwrap();
        assert!(found == ggml::quantize(ty, &x), "{ty} rounds otherwise");
    }
}

/// The files of `fixtures/blocks`, made by ggml alone from seed 5.
fn fixtures() -> Vec<(String, Vec<u8>)> {
    let mut random = Random(5);
    let mut files = Vec::new();
    let mut add = |ty: &dyn std::fmt::Display, kind: &str, bytes: Vec<u8>| {
        files.push((format!("{}.{kind}", ty.to_string().to_lowercase()), bytes));
    };
    let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();

    for ty in READ {
        let mut row = random.bytes(row_bytes(ty));
        for block in row.chunks_mut(ty.bytes()) {
            for at in f16_fields(ty) {
                block[at + 1] &= 0xbf; // below 2: finite
            }
        }
        add(&ty, "weights", bytes(&ggml::dequantize(ty, &row)));
        add(&ty, "row", row);
    }

    let x: Vec<f32> = (0..COLUMNS).map(|_| random.normal() * 0.02).collect();
    for ty in WRITTEN {
        add(&ty, "quantized", ggml::quantize(ty, &x));
    }
    add(&"input", "weights", bytes(&x));

    let codes: [i8; COLUMNS] = random.codes();
    let scale = f16::from_f32(0.0123);
    for ty in EXACT_IN_GGML {
        add(&ty, "packed", ternary_row_by_ggml(ty, &codes, scale));
    }
    add(&"input", "codes", codes.map(|code| code as u8).to_vec());
    files
}

fn fixture_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/blocks")
}

#[test]
fn fixtures_are_what_ggml_makes() {
    for (name, expected) in fixtures() {
        let found = fs::read(fixture_dir().join(&name)).unwrap();
        assert!(found == expected, "fixtures/blocks/{name} is not ggml's");
    }
}

#[test]
#[ignore = "writes fixtures/blocks"]
fn write_fixtures() {
    fs::create_dir_all(fixture_dir()).unwrap();
    for (name, bytes) in fixtures() {
        fs::write(fixture_dir().join(name), bytes).unwrap();
    }
}
