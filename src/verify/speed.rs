//! Level 5: both engines on the same file in the same run, against the clock and against what the memory can give.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use formats::gguf::File;

use super::report::{EngineSpeed, Level, NotChecked, SpeedFacts};
use super::{Options, Progress, VerifyError};
use crate::engine::native::{self, Native};
use crate::engine::shape::Shape;
use crate::engine::{EngineError, Generate};
use crate::metrics;

pub(super) const NUMBER: u8 = 5;
pub(super) const NAME: &str = "speed";

const PREFILL: usize = 128;
const DECODE: usize = 32;
/// Runs that are timed; of an odd number the median is one of them.
const RUNS: usize = 5;
/// After so long no further run is begun.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time both engines.
pub(super) fn check(
    path: &Path,
    file: &File,
    options: &Options,
    progress: &Progress,
) -> Result<(Level, Option<SpeedFacts>), VerifyError> {
    let shape = match Shape::read(file) {
        Ok(shape) => shape,
        Err(error) => return Ok((Level::not_checked(NUMBER, NAME, error.to_string()), None)),
    };
    let context = (PREFILL + DECODE).min(shape.context);
    let (prefill, decode) = (context - context / 5, context / 5);
    let mut not_checked = vec![];
    progress("speed: memory");
    let bandwidth = read_bandwidth(options.threads);
    let stored = stored_bytes(file);

    let mut engines = vec![];
    progress("speed: native");
    let mut native = Native::load(file, native::Settings::new(context, options.threads))?;
    let bytes = native.packed_bytes() as u64;
    engines.push(measure(&mut native, prefill, decode, bytes)?);
    drop(native);
    progress("speed: llama.cpp");
    match llama(path, file, context, options.threads, |engine| {
        measure(engine, prefill, decode, stored)
    }) {
        Ok(speed) => engines.push(speed),
        Err(why) => not_checked.push(NotChecked::new("llama.cpp", why)),
    }
    let facts = SpeedFacts {
        bandwidth,
        threads: options.threads,
        prefill_tokens: prefill,
        decode_tokens: decode,
        runs: RUNS,
        engines,
    };
    Ok((Level::measured(NUMBER, NAME, not_checked), Some(facts)))
}

/// Bytes of the weights that a decoded token reads, as they are in the file: all matrices but a separate embedding.
fn stored_bytes(file: &File) -> u64 {
    let separate_head = file.tensor("output.weight").is_some();
    let read =
        |name: &str| name.ends_with(".weight") && !(separate_head && name == "token_embd.weight");
    let matrices = file
        .tensors()
        .iter()
        .filter(|info| info.rows() > 1 && read(&info.name));
    matrices.filter_map(|info| info.bytes()).sum()
}

/// Medians over up to [`RUNS`] runs, after one to warm up.
fn measure(
    engine: &mut dyn Generate,
    prefill: usize,
    decode: usize,
    bytes_per_token: u64,
) -> Result<EngineSpeed, EngineError> {
    let vocab = engine.vocab() as u32;
    let tokens: Vec<u32> = (0..prefill as u32).map(|i| i * 7919 % vocab).collect();
    let (mut prefills, mut decodes) = (vec![], vec![]);
    let begin = Instant::now();
    for run in 0..=RUNS {
        if run > 1 && begin.elapsed() > PATIENCE {
            break;
        }
        engine.reset();
        let start = Instant::now();
        engine.feed(&tokens)?;
        let filled = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for token in &tokens[..decode.min(prefill)] {
            engine.feed(&[*token])?;
        }
        let decoded = start.elapsed().as_secs_f64();
        if run > 0 {
            prefills.push(prefill as f64 / filled);
            decodes.push(decode.min(prefill) as f64 / decoded);
        }
    }
    let decode = metrics::median(&decodes);
    Ok(EngineSpeed {
        name: engine.name(),
        prefill: metrics::median(&prefills),
        decode,
        bytes_per_token,
        read_rate: decode * bytes_per_token as f64 / 1e9,
    })
}

/// GB/s at which so many threads read memory that no cache holds: the best of a few passes.
fn read_bandwidth(threads: usize) -> f64 {
    const WORDS: usize = 64 << 20; // 512 MiB
    const PASSES: usize = 4;
    let data = vec![1u64; WORDS];
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in data.chunks(WORDS.div_ceil(threads)) {
                scope.spawn(move || {
                    black_box(part.iter().fold(0u64, |sum, &word| sum.wrapping_add(word)))
                });
            }
        });
        8.0 * WORDS as f64 / 1e9 / start.elapsed().as_secs_f64()
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}

#[cfg(feature = "llama")]
fn llama(
    path: &Path,
    file: &File,
    context: usize,
    threads: usize,
    measure: impl FnOnce(&mut dyn Generate) -> Result<EngineSpeed, EngineError>,
) -> Result<EngineSpeed, String> {
    use crate::engine::llamacpp::{Model, Settings};
    let settings = Settings {
        context,
        threads,
        exact_cache: false,
    };
    let timed = || measure(&mut Model::load(path, file)?.session(settings)?);
    timed().map_err(|error: EngineError| error.to_string())
}

#[cfg(not(feature = "llama"))]
fn llama(
    _: &Path,
    _: &File,
    _: usize,
    _: usize,
    _: impl FnOnce(&mut dyn Generate) -> Result<EngineSpeed, EngineError>,
) -> Result<EngineSpeed, String> {
    Err(super::NO_LLAMA.into())
}
