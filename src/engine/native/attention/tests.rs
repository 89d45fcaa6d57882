//! Attention of every level against the plain one and a formula in f64, with every type of the cache.

use formats::block::BlockType;
use half::bf16;

use super::super::cells::{CacheType, CacheTypes};
use super::*;
use crate::engine::EngineError;
use crate::engine::hyper::Dims;

const HEADS: usize = 6;
const KV_HEADS: usize = 2;

fn dims(head_dim: usize) -> Dims {
    Dims {
        hidden: HEADS * head_dim,
        intermediate: 1,
        layers: 1,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim,
        vocab: 1,
    }
}

/// Numbers in -2..2 without a pattern.
fn numbers(seed: usize, count: usize) -> Vec<f32> {
    let number = |i: usize| (i * 7919 + seed * 104_729) % 1009;
    (0..count).map(|i| number(i) as f32 / 252.0 - 2.0).collect()
}

/// Attention of one head of a token that sees `seen` positions, as it is written down, in f64, with what types round of
/// queries and weights.
fn plain(types: CacheTypes, q: &[f32], k: &[f32], v: &[f32], kv_head: usize, seen: usize) -> Vec<f64> {
    let head_dim = q.len();
    let at = |x: &[f32], position: usize, i: usize| f64::from(x[(position * KV_HEADS + kv_head) * head_dim + i]);
    let round = |ty, x: f64| {
        if ty == CacheType::Bf16 {
            bf16::from_f64(x).into()
        } else {
            x
        }
    };
    let scaled = |q: &f32| f64::from(*q) * std::f64::consts::LOG2_E / (head_dim as f64).sqrt();
    let q: Vec<f64> = q.iter().map(|q| round(types.keys, scaled(q))).collect();
    let score = |position: usize| -> f64 { (0..head_dim).map(|i| q[i] * at(k, position, i)).sum() };
    let scores: Vec<f64> = (0..seen).map(score).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max).ceil();
    let weights: Vec<f64> = scores
        .iter()
        .map(|score| round(types.values, (score - max).exp2()))
        .collect();
    let total: f64 = weights.iter().sum();
    let output = |i: usize| {
        let terms = (0..seen).map(|position| weights[position] * at(v, position, i));
        terms.sum::<f64>() / total
    };
    (0..head_dim).map(output).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// `x`, of heads of `head_dim` numbers, as a file of the type has it.
fn rounded(x: &[f32], head_dim: usize, ty: CacheType) -> Vec<f32> {
    let ty = match ty {
        CacheType::F32 => BlockType::F32,
        CacheType::F16 => BlockType::F16,
        CacheType::Bf16 => BlockType::BF16,
        CacheType::Q8_0 => BlockType::Q8_0,
    };
    let mut out = vec![f32::NAN; x.len()];
    for (x, out) in x.chunks(head_dim).zip(out.chunks_mut(head_dim)) {
        let mut row = vec![0; ty.row_bytes(head_dim).unwrap()];
        ty.quantize_row(x, &mut row).unwrap();
        ty.dequantize_row(&row, out).unwrap();
    }
    out
}

#[test]
fn every_level_attends_with_the_same_bits() {
    use CacheType::{Bf16, F16, F32, Q8_0};
    let pairs = [
        (F32, F32),
        (F16, F16),
        (Bf16, Bf16),
        (Q8_0, Q8_0),
        (F16, Q8_0),
        (Q8_0, F32),
        (Bf16, F32),
    ];
    for (keys, values) in pairs {
        // 8 is half a vector, 24 ends inside one, 80 has five; 37 positions end inside a tile, 150 are three blocks, 128 end
        // with one; of 1030 the last tokens alone see the second span, 2100 are three spans.
        let short = [(8, 37), (16, 37), (24, 150), (64, 150), (64, 128), (80, 70), (96, 100)];
        for (head_dim, stored) in short.into_iter().chain([(64, 1030), (32, 2100)]) {
            let types = CacheTypes { keys, values };
            if types.check(head_dim).is_ok() {
                check(types, head_dim, stored);
            }
        }
    }
}

fn check(types: CacheTypes, head_dim: usize, stored: usize) {
    let width = HEADS * head_dim;
    let [k, v] = [1, 2].map(|seed| numbers(seed, stored * KV_HEADS * head_dim));
    let mut cache = Cache::new(types, &dims(head_dim), 1, stored).unwrap();
    let before = 29 * KV_HEADS * head_dim; // what comes in two parts lies as what comes at once
    cache.store(0, 0, &k[..before], &v[..before], &Threads::new(1));
    cache.store(0, 29, &k[before..], &v[before..], &Threads::new(2));
    let q = numbers(3, stored * width);
    // 21 tokens are one piece of work with all spans for a single thread, and several for more.
    let (one, four) = (Threads::new(1), Threads::new(4));
    let attend = |attention: &mut Attention, threads, tokens: usize| {
        let first = stored - tokens;
        let mut out = vec![f32::NAN; tokens * width];
        let q = &q[first * width..];
        attention.attend(&cache, threads, (0, first), q, width, &mut out);
        out
    };
    let expected = attend(&mut Attention::new(Level::BASELINE, Isa::Scalar), &one, 21);
    let levels = Level::available().into_iter().map(|level| (level, Isa::Scalar));
    for (level, isa) in levels.chain([(Level::widest(), Isa::best())]) {
        let mut attention = Attention::new(level, isa); // with what the last tokens left in it
        for (threads, tokens) in [(&one, 21), (&four, 21), (&four, 9), (&four, 3), (&four, 1)] {
            let same = &expected[(21 - tokens) * width..];
            let found = attend(&mut attention, threads, tokens);
            let place = format!("{types:?} {} {isa} {head_dim} {tokens}", level.name());
            assert_eq!(bits(&found), bits(same), "{place}");
        }
    }
    let (k, v) = (rounded(&k, head_dim, types.keys), rounded(&v, head_dim, types.values));
    for (i, found) in expected.chunks_exact(head_dim).enumerate() {
        let (token, kv_head) = (stored - 21 + i / HEADS, i % HEADS / (HEADS / KV_HEADS));
        let q = &q[token * width + i % HEADS * head_dim..][..head_dim];
        let exact = plain(types, q, &k, &v, kv_head, token + 1);
        let mut errors = found.iter().zip(exact).map(|(y, exact)| (f64::from(*y) - exact).abs());
        // A score between two weights of bf16 may be rounded to the other one, for values of up to 2.
        let limit = if types.values == CacheType::Bf16 { 4e-3 } else { 1e-5 };
        assert!(errors.all(|error| error < limit), "{types:?} {head_dim} {stored} {i}");
    }
}

/// A token behind `stored` positions, among 21 by one thread and alone by four, where all dimensions of a key, or value,
/// are alike.
fn alone_and_among_others(
    ty: CacheType,
    stored: usize,
    key: fn(usize) -> f32,
    value: fn(usize) -> f32,
) -> [Vec<f32>; 2] {
    let (head_dim, types) = (64, CacheTypes { keys: ty, values: ty });
    let width = HEADS * head_dim;
    let [k, v] = [key, value].map(|of| -> Vec<f32> {
        (0..stored * KV_HEADS * head_dim)
            .map(|i| of(i / (KV_HEADS * head_dim)))
            .collect()
    });
    let mut cache = Cache::new(types, &dims(head_dim), 1, stored).unwrap();
    cache.store(0, 0, &k, &v, &Threads::new(1));
    [(1, 21), (4, 1)].map(|(threads, tokens)| {
        let mut out = vec![f32::NAN; tokens * width];
        let mut attention = Attention::new(Level::widest(), Isa::best());
        let (threads, q) = (Threads::new(threads), vec![1.0; tokens * width]);
        attention.attend(&cache, &threads, (0, stored - tokens), &q, width, &mut out);
        out.split_off((tokens - 1) * width)
    })
}

#[test]
fn tiny_sums_have_the_same_bits() {
    // The second span makes the sums of the first one a zero, which was negative.
    let key = |position| if position < 1024 { 0.0 } else { 10.0 };
    let value = |position| if position < 1024 { -1e-35 } else { 0.0 };
    let [among, alone] = alone_and_among_others(CacheType::F32, 1025, key, value);
    assert_eq!(bits(&among), bits(&alone));
    // The second block makes the sum of the first one subnormal, which tile registers take as 0.
    let key = |position| match position {
        0 => -4.2,
        64 => 4.2,
        _ => 0.0,
    };
    let value = |position| if position == 0 { 1e-12 } else { 0.0 };
    let [among, alone] = alone_and_among_others(CacheType::Bf16, 85, key, value);
    assert_eq!(bits(&among), bits(&alone));
}

#[test]
fn spans_are_apart_where_pieces_are_few_and_memory_allows_it() {
    const CONTEXT: usize = 1 << 17;
    let (head_dim, all) = (8, CONTEXT / BLOCK);
    let cache = Cache::new(CacheTypes::default(), &dims(head_dim), 1, CONTEXT).unwrap();
    let stretch = |tokens: usize, wanted| {
        let (q, width) = (vec![0.0; tokens * HEADS * head_dim], HEADS * head_dim);
        Batch::new(&cache, (0, CONTEXT - tokens), (&q, width), wanted).stretch(wanted)
    };
    assert_eq!(stretch(1, KV_HEADS), all);
    assert_eq!(stretch(1, KV_HEADS + 1), SPAN);
    // 36 pieces of 12 tokens and 3 heads, of 33 vectors each for 16 queries: 128 spans take 0.87 of the limit; 43 pieces 1.04.
    assert_eq!(stretch(36 * 12, 256), SPAN);
    assert_eq!(stretch(512, 256), all);
}

#[test]
fn the_cache_takes_what_its_types_take() {
    let bytes = |keys, values| {
        Cache::new(CacheTypes { keys, values }, &dims(64), 3, 128)
            .unwrap()
            .bytes()
    };
    let numbers = 3 * 128 * KV_HEADS * 64; // of the keys, and as many of the values
    assert_eq!(bytes(CacheType::F32, CacheType::F32), 2 * 4 * numbers);
    assert_eq!(bytes(CacheType::F16, CacheType::F16), 2 * 2 * numbers);
    assert_eq!(
        bytes(CacheType::Q8_0, CacheType::F32),
        (34 * numbers) / 32 + 4 * numbers
    );
}

#[test]
fn a_cache_that_no_system_has_memory_for_is_an_error() {
    let endless = Cache::new(CacheTypes::default(), &dims(64), 1, usize::MAX);
    assert!(matches!(endless, Err(EngineError::CacheMemory { .. })));
}

/// Tiles read whole blocks, whatever is written there.
#[test]
fn what_an_earlier_text_left_does_not_count() {
    for ty in CacheType::ALL {
        let (head_dim, types) = (64, CacheTypes { keys: ty, values: ty });
        let (threads, width) = (Threads::new(1), HEADS * head_dim);
        let kv = numbers(1, 3 * KV_HEADS * head_dim);
        let attend = |earlier: &[f32]| {
            let mut cache = Cache::new(types, &dims(head_dim), 1, BLOCK).unwrap();
            cache.store(0, 0, earlier, earlier, &threads);
            cache.store(0, 0, &kv, &kv, &threads);
            let mut attention = Attention::new(Level::widest(), Isa::best());
            let mut out = vec![f32::NAN; 3 * width];
            attention.attend(&cache, &threads, (0, 0), &numbers(2, 3 * width), width, &mut out);
            bits(&out)
        };
        let after_nothing = attend(&[]);
        assert!(after_nothing.iter().all(|&bits| f32::from_bits(bits).is_finite()));
        assert_eq!(attend(&[f32::NAN; BLOCK * KV_HEADS * 64]), after_nothing, "{ty:?}");
    }
}
