//! Both engines on the same file in the same run, against the clock and against what the memory can give.

use std::path::Path;
use std::time::{Duration, Instant};

use formats::gguf::File;
use schemars::JsonSchema;
use serde::Serialize;

use super::memory::Memory;
use crate::engine::hyper::Hyper;
use crate::engine::llamacpp::{Model, Settings};
use crate::engine::native::{self, CacheType, CacheTypes, Native};
use crate::engine::{EngineError, EngineName, Generate};
use crate::kernels::{ActivationScales, Isa, Threads};
use crate::metrics;
use crate::witness::Program;

/// Pause before each engine's turn: llama.cpp's idle threads spin for some 70 ms before they sleep (ggml-cpu.c:3213).
const REST: Duration = Duration::from_millis(200);
/// Memory that is read before each run: more than caches hold.
const READ_BYTES: usize = 512 << 20;

/// What llama.cpp keeps keys and values in, if not exact ([`Settings::exact_cache`]).
const LLAMACPP_CACHE: CacheTypes = CacheTypes {
    keys: CacheType::F16,
    values: CacheType::F16,
};

/// Told what is being done, and where it is known, which share (0 to 1) of it is behind.
pub type Progress<'a> = dyn Fn(&str, Option<f64>) + 'a;

/// What two engines are made to do.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Threads of each engine.
    pub threads: usize,
    /// Tokens of a prefill.
    pub prefill: usize,
    /// Tokens decoded after it.
    pub decode: usize,
    /// Runs that are timed, after one to warm up; of an odd number the median is one of them.
    pub runs: usize,
    /// The instructions of our engine.
    pub isa: Isa,
    /// How our engine rounds activations.
    pub activations: ActivationScales,
    /// What our engine keeps keys and values in.
    pub cache: CacheTypes,
    /// After so long no further run is begun.
    pub patience: Duration,
}

impl Workload {
    /// What level 5 of `verify` runs.
    pub fn new(threads: usize) -> Self {
        let patience = Duration::from_secs(30);
        Self {
            threads,
            prefill: 128,
            decode: 32,
            runs: 5,
            isa: Isa::best(),
            activations: ActivationScales::LlamaCpp,
            cache: CacheTypes::default(),
            patience,
        }
    }

    /// How many positions a decoded token sees, its own among them, on average.
    fn positions(&self) -> f64 {
        self.prefill as f64 + (self.decode as f64 + 1.0) / 2.0
    }

    /// The same, within a context of so many tokens.
    fn within(self, context: usize) -> Self {
        if self.prefill + self.decode <= context {
            return self;
        }
        let decode = context / 5;
        Self {
            prefill: context - decode,
            decode,
            ..self
        }
    }
}

/// The engines against the clock.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SpeedFacts {
    /// Read bandwidth of the machine with as many threads, measured before each run, the median; GB/s.
    #[serde(rename = "memory_gb_per_second")]
    pub bandwidth: f64,
    /// Threads of each engine.
    pub threads: usize,
    /// Tokens of a prefill.
    pub prefill_tokens: usize,
    /// Tokens decoded.
    pub decode_tokens: usize,
    /// Runs of which the median is taken, at most.
    pub runs: usize,
    /// Bytes of the keys and values of all tokens in our engine.
    pub cache_bytes: u64,
    /// What our engine did before.
    pub load: LoadFacts,
    /// The engines.
    pub engines: Vec<EngineSpeed>,
}

/// Our engine packing the weights of a file for its kernels.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct LoadFacts {
    /// Threads that packed.
    pub threads: usize,
    /// Seconds of the first time, with whatever of the file and of free memory the system had yet to fetch.
    pub first_seconds: f64,
    /// Seconds of the second time.
    pub seconds: f64,
    /// Bytes of the weights in the file: all linears and the head.
    pub stored_bytes: u64,
    /// GB of these a second, the second time.
    #[serde(rename = "stored_gb_per_second")]
    pub stored_rate: f64,
    /// Bytes of the same weights as packed in memory.
    pub packed_bytes: u64,
}

/// One engine against the clock.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EngineSpeed {
    /// What it calls itself.
    #[serde(rename = "engine")]
    pub name: EngineName,
    /// Tokens a second, many at once.
    #[serde(rename = "prefill_tokens_per_second")]
    pub prefill: Rate,
    /// Tokens a second, one after another.
    #[serde(rename = "decode_tokens_per_second")]
    pub decode: Rate,
    /// Bytes of weights that one decoded token reads.
    pub bytes_per_token: u64,
    /// Bytes of keys and values that one decoded token reads, on average.
    pub cache_bytes_per_token: u64,
    /// GB of weights a second while decoding.
    #[serde(rename = "weights_gb_per_second")]
    pub weights_rate: f64,
    /// GB of weights, keys and values a second while decoding.
    #[serde(rename = "read_gb_per_second")]
    pub read_rate: f64,
}

/// Tokens a second over several runs.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Rate {
    /// The median.
    pub median: f64,
    /// The slowest run.
    pub min: f64,
    /// The fastest run.
    pub max: f64,
}

impl Rate {
    /// Of the rates of all runs.
    fn new(rates: &[f64]) -> Self {
        Self {
            median: metrics::median(rates),
            min: metrics::quantile(rates, 0.0),
            max: metrics::quantile(rates, 1.0),
        }
    }
}

/// Time our engine and llama.cpp on the same file, in turn, run by run; and why llama.cpp was not timed, if it was not.
///
/// # Errors
/// Our engine does not load the file, or there is no memory to measure.
pub fn race(
    path: &Path,
    file: &File,
    program: &Program,
    workload: Workload,
    progress: &Progress,
) -> Result<(SpeedFacts, Option<EngineError>), EngineError> {
    let hyper = Hyper::read(file)?;
    let workload = workload.within(hyper.context);
    let (context, threads) = (workload.prefill + workload.decode, workload.threads);
    progress("loading", None);
    let settings = native::Settings::new(context, threads)
        .with_isa(workload.isa)
        .with_activations(workload.activations)
        .with_cache(workload.cache);
    let first = Native::load(file, settings)?.load_time();
    let mut native = Native::load(file, settings)?;
    let load = load_facts(file, &native, first);
    let cache_bytes = native.cache_bytes() as u64;
    let reads = |weights, cache: CacheTypes| Reads {
        weights,
        cache: (cache.bytes(&hyper.dims) as f64 * workload.positions()) as u64,
    };
    let ours = reads(load.packed_bytes, workload.cache);
    let theirs = reads(load.stored_bytes, LLAMACPP_CACHE);
    let together = llama(program, path, file, context, threads, |llama| {
        time_in_turn(&mut [(&mut native, ours), (llama, theirs)], workload, progress)
    });
    let ((bandwidth, engines), missing) = match together {
        Ok(measured) => (measured, None),
        Err(why) => (time_in_turn(&mut [(&mut native, ours)], workload, progress)?, Some(why)),
    };
    let facts = SpeedFacts {
        bandwidth,
        threads,
        prefill_tokens: workload.prefill,
        decode_tokens: workload.decode,
        runs: workload.runs,
        cache_bytes,
        load,
        engines,
    };
    Ok((facts, missing))
}

/// What the second load cost, after a `first`.
fn load_facts(file: &File, native: &Native, first: Duration) -> LoadFacts {
    let (seconds, stored_bytes) = (native.load_time().as_secs_f64(), stored_bytes(file));
    LoadFacts {
        threads: rayon::current_num_threads(),
        first_seconds: first.as_secs_f64(),
        seconds,
        stored_bytes,
        stored_rate: stored_bytes as f64 / 1e9 / seconds,
        packed_bytes: native.packed_bytes() as u64,
    }
}

/// Bytes of the weights that a decoded token reads, as they are in the file: all matrices but a separate embedding.
fn stored_bytes(file: &File) -> u64 {
    let separate_head = file.tensor("output.weight").is_some();
    let read = |name: &str| name.ends_with(".weight") && !(separate_head && name == "token_embd.weight");
    let matrices = file.tensors().iter().filter(|info| info.rows() > 1 && read(&info.name));
    matrices.filter_map(|info| info.bytes()).sum()
}

/// Bytes that a decoded token reads.
#[derive(Clone, Copy)]
struct Reads {
    weights: u64,
    /// Keys and values of all positions up to its own, on average.
    cache: u64,
}

/// GB/s that memory gives, and rates of each engine over the runs.
fn time_in_turn(
    engines: &mut [(&mut dyn Generate, Reads)],
    workload: Workload,
    progress: &Progress,
) -> Result<(f64, Vec<EngineSpeed>), EngineError> {
    let bytes = READ_BYTES;
    let memory = Memory::new(bytes).map_err(|source| EngineError::Memory { bytes, source })?;
    // Of threads that the system does not give, the others do the work.
    let threads = Threads::new(workload.threads);
    let (mut reads, mut rates) = (vec![], vec![(vec![], vec![]); engines.len()]);
    let begin = Instant::now();
    for run in 0..=workload.runs {
        if run > 1 && begin.elapsed() > workload.patience {
            break;
        }
        let of = format!("engines in turn, run {run} of {}", workload.runs);
        progress(&of, Some(run as f64 / (workload.runs + 1) as f64));
        let read = memory.read_rate(&threads);
        if run > 0 {
            reads.push(read);
        }
        for ((engine, _), (prefills, decodes)) in engines.iter_mut().zip(&mut rates) {
            std::thread::sleep(REST);
            let (prefill, decode) = time_once(*engine, workload)?;
            if run > 0 {
                prefills.push(prefill);
                decodes.push(decode);
            }
        }
    }
    let speeds = engines
        .iter()
        .zip(&rates)
        .map(|((engine, reads), (prefills, decodes))| {
            let (prefill, decode) = (Rate::new(prefills), Rate::new(decodes));
            let rate = |bytes| decode.median * bytes as f64 / 1e9;
            EngineSpeed {
                name: engine.name(),
                prefill,
                decode,
                bytes_per_token: reads.weights,
                cache_bytes_per_token: reads.cache,
                weights_rate: rate(reads.weights),
                read_rate: rate(reads.weights + reads.cache),
            }
        });
    Ok((metrics::median(&reads) / 1e9, speeds.collect()))
}

/// Tokens a second of one prefill and the decoding after it.
fn time_once(engine: &mut dyn Generate, workload: Workload) -> Result<(f64, f64), EngineError> {
    let vocab = engine.vocab() as u32;
    let token = |i: usize| (i as u32).wrapping_mul(7919) % vocab;
    let [prefill, decode] = [workload.prefill, workload.decode].map(|count| (0..count).map(token).collect::<Vec<_>>());
    let times = engine.time(&prefill, &decode)?;
    Ok((
        workload.prefill as f64 / times.0.as_secs_f64(),
        workload.decode as f64 / times.1.as_secs_f64(),
    ))
}

fn llama<T>(
    program: &Program,
    path: &Path,
    file: &File,
    context: usize,
    threads: usize,
    measure: impl FnOnce(&mut dyn Generate) -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    let settings = Settings {
        context,
        threads,
        exact_cache: false,
    };
    measure(&mut Model::load(program, path, file)?.session(settings)?)
}
