//! Level 3: our kernels against f64, and against ggml's own matrix product, on the blocks of the file and the same
//! activations, for every linear and the head.

use std::collections::HashMap;
use std::path::Path;

use formats::block::{BlockError, BlockType};
use formats::gguf::File;
use rayon::prelude::*;

use super::report::{Check, CheckId, DotFacts, Level, LevelReport, Limit, NotChecked, Unit};
use super::{Options as VerifyOptions, Progress, VerifyError, witness};
use crate::blueprint::Linear;
use crate::engine::hyper::Hyper;
use crate::kernels::{Activations, Matrix, Options, Threads, exact};
use crate::mapped::Model;
use crate::metrics;
use crate::witness::{self as llama, Piece, Weights, Witness, WitnessError, pieces};

/// Activations a matrix is multiplied with: enough that GEMM and not GEMV runs, and that a panel is left partly empty.
const TOKENS: usize = 5;

/// What 8-bit activations may cost: the limit of ggml's own test of MUL_MAT (tests/test-backend-ops.cpp, `max_nmse_err`).
const ACTIVATIONS: f64 = 5e-4;

/// One product of the model.
pub(super) struct Dot {
    /// For example `blk.0.attn_q`.
    pub name: String,
    ty: BlockType,
    pub facts: DotFacts,
}

/// Multiply with every linear and the head.
pub(super) fn check(
    model: &Model,
    file: &File,
    asked: &VerifyOptions,
    progress: &Progress,
) -> Result<(LevelReport, Vec<Dot>), VerifyError> {
    let Ok(hyper) = Hyper::read(file) else {
        let level = LevelReport::not_checked(
            Level::Dots,
            "the file's tensors are not those of its architecture (level 1)",
        );
        return Ok((level, vec![]));
    };
    let (options, threads) = (Options::default(), Threads::new(asked.threads));
    let mut dots = vec![];
    let mut not_checked = vec![];
    let mut kernels: Vec<String> = vec![];
    let places = places(model);
    let mut ggml = Witness::start(&asked.witness);
    let matrices = matrices(&hyper, file);
    for (seed, name) in matrices.iter().enumerate() {
        progress(&format!("dots: {name}"), Some(seed as f64 / matrices.len() as f64));
        let Some((info, bytes)) = file.tensor(&format!("{name}.weight")) else {
            continue;
        };
        let (rows, columns) = (info.rows() as usize, info.columns() as usize);
        let matrix = match Matrix::new(info.ty, rows, columns, bytes, &options) {
            Ok(matrix) => matrix,
            Err(error) => {
                not_checked.push(NotChecked::new(name.clone(), error.to_string()));
                continue;
            }
        };
        let kernel = format!("{} ({})", info.ty, matrix.kernel());
        if !kernels.contains(&kernel) {
            kernels.push(kernel);
        }
        let x = activations(TOKENS * columns, seed as u64);
        let exact = exact_product(info.ty, rows, columns, bytes, &x)?;
        let ours = product(&matrix, &options, &x, &threads);
        let matrix_of_file = llama::Matrix {
            ty: info.ty,
            rows,
            columns,
            weights: Weights::File(places[name].0, places[name].1),
        };
        let theirs = product_of(&mut ggml, matrix_of_file, &x, threads.count());
        dots.push(Dot {
            name: name.clone(),
            ty: info.ty,
            facts: facts(&exact, &ours, theirs.as_deref()),
        });
    }
    let mut checks = checks(&dots, &kernels);
    if let Err(error) = ggml {
        witness::failed(CheckId::GgmlRuns, error, &mut checks, &mut not_checked)?;
    }
    Ok((LevelReport::new(Level::Dots, checks, not_checked), dots))
}

/// One product in f64, by our kernel, and by ggml.
fn facts(exact: &[f32], ours: &[f32], ggml: Option<&[f32]>) -> DotFacts {
    DotFacts {
        kernel: metrics::nmse(exact, ours),
        ggml: ggml.map(|ggml| metrics::nmse(exact, ggml)),
        between: ggml.map(|ggml| metrics::nmse(ggml, ours)),
        largest: largest_difference(exact, ours),
    }
}

/// The file that each matrix is in, and where, by its name without `.weight`.
fn places(model: &Model) -> HashMap<String, (&Path, Piece)> {
    let mut places = HashMap::new();
    for part in model.parts() {
        let Ok(file) = part.parse() else { continue };
        for (info, piece) in file.tensors().iter().zip(pieces(&file)) {
            let name = info.name.trim_end_matches(".weight").to_owned();
            places.insert(name, (&*part.path, piece));
        }
    }
    places
}

/// The linears layer by layer, then the head.
fn matrices(hyper: &Hyper, file: &File) -> Vec<String> {
    let head = if file.tensor("output.weight").is_some() {
        "output"
    } else {
        "token_embd"
    };
    let linears = Linear::all(&hyper.dims).map(Linear::gguf_name);
    linears.chain([head.into()]).collect()
}

fn checks(dots: &[Dot], kernels: &[String]) -> Vec<Check> {
    let all = LIMITS.iter().filter_map(|limit| limit.check(dots, kernels));
    all.collect()
}

/// How far the products of two may be apart.
struct Between {
    id: CheckId,
    /// The largest NMSE that is allowed, and why.
    limit: (f64, &'static str),
    /// The NMSE of a product, where it is one of these.
    nmse: fn(&Dot) -> Option<f64>,
}

const LIMITS: [Between; 5] = [
    Between {
        id: CheckId::OurProduct,
        limit: (ACTIVATIONS, "ggml's own limit for MUL_MAT: 8-bit activations"),
        nmse: |dot| Some(dot.facts.kernel),
    },
    Between {
        id: CheckId::GgmlProduct,
        limit: (ACTIVATIONS, "ggml's own limit for MUL_MAT: 8-bit activations"),
        nmse: |dot| dot.facts.ggml,
    },
    // How ggml rounds the activations of a matrix.
    Between {
        id: CheckId::ProductsEightBits,
        limit: (1e-7, "both round alike; ggml's own limit for the order of a sum"),
        nmse: |dot| {
            dot.facts
                .between
                .filter(|_| !matches!(dot.ty, BlockType::F16 | BlockType::BF16))
        },
    },
    Between {
        id: CheckId::ProductsF16,
        limit: (2.4e-7, "ggml rounds them to F16, we do not: 2^-22"),
        nmse: |dot| dot.facts.between.filter(|_| dot.ty == BlockType::F16),
    },
    Between {
        id: CheckId::ProductsBf16,
        limit: (1.6e-5, "ggml rounds them to BF16, we do not: 2^-16"),
        nmse: |dot| dot.facts.between.filter(|_| dot.ty == BlockType::BF16),
    },
];

impl Between {
    /// The worst of the products that it is about; `None` where there is none.
    fn check(&self, dots: &[Dot], kernels: &[String]) -> Option<Check> {
        let found = dots.iter().filter_map(|dot| Some((dot, (self.nmse)(dot)?)));
        let (dot, found) = metrics::worst(found)?;
        let (at_most, origin) = self.limit;
        let check = Check::new(self.id, found, Unit::Nmse, Limit { at_most }, origin);
        if check.pass {
            return Some(check);
        }
        let place = format!("'{}' is the worst of {}", dot.name, dots.len());
        Some(check.with_details([vec![place], kernels.to_vec()].concat()))
    }
}

/// About normal numbers (sums of four uniform ones) from a seed.
fn activations(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..4).map(|_| uniform()).sum()).collect()
}

/// [`exact::product`], rows in parallel. (tokens, rows)
fn exact_product(ty: BlockType, rows: usize, columns: usize, bytes: &[u8], x: &[f32]) -> Result<Vec<f32>, BlockError> {
    const ROWS: usize = 64;
    let row_bytes = bytes.len() / rows;
    let pieces = bytes
        .par_chunks(ROWS * row_bytes)
        .map(|bytes| exact::product(ty, bytes.len() / row_bytes, columns, bytes, x))
        .collect::<Result<Vec<_>, _>>()?;
    let tokens = x.len() / columns;
    let mut y = Vec::with_capacity(tokens * rows);
    for token in 0..tokens {
        for piece in &pieces {
            let rows = piece.len() / tokens;
            y.extend(piece[token * rows..][..rows].iter().map(|&y| y as f32));
        }
    }
    Ok(y)
}

/// (tokens, rows)
fn product(matrix: &Matrix, options: &Options, x: &[f32], threads: &Threads) -> Vec<f32> {
    let mut activations = Activations::new(options.isa);
    activations.quantize(x, matrix.columns(), matrix.grouping(), threads);
    let mut y = vec![f32::NAN; activations.tokens() * matrix.rows()];
    matrix.multiply(&activations, &mut y, threads);
    y
}

/// ggml's product (tokens, rows); once it has failed, it is not asked again.
fn product_of(
    ggml: &mut Result<Witness, WitnessError>,
    matrix: llama::Matrix,
    x: &[f32],
    threads: usize,
) -> Option<Vec<f32>> {
    match ggml.as_mut().ok()?.multiply(matrix, x, threads) {
        Ok(y) => Some(y),
        Err(error) => {
            *ggml = Err(error);
            None
        }
    }
}

/// Largest |a - b| over the root mean square of `a`.
fn largest_difference(a: &[f32], b: &[f32]) -> f64 {
    let power: f64 = a.iter().map(|&a| f64::from(a) * f64::from(a)).sum();
    let rms = (power / a.len() as f64).sqrt();
    let differences = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    let largest = differences.fold(0.0, f64::max);
    if largest == 0.0 { 0.0 } else { largest / rms }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(name: &str, ty: BlockType, between: f64) -> Dot {
        let facts = DotFacts {
            kernel: 1e-5,
            ggml: Some(1e-5),
            between: Some(between),
            largest: 0.0,
        };
        Dot {
            name: name.into(),
            ty,
            facts,
        }
    }

    #[test]
    fn each_type_has_the_limit_of_its_activations() {
        let dots = [
            dot("blk.0.attn_q", BlockType::Q2_K, 1e-14),
            dot("output", BlockType::BF16, 3e-6),
        ];
        let found = checks(&dots, &[]);
        assert_eq!(found.len(), 4);
        assert!(found.iter().all(|check| check.pass));
        // What BF16 may cost is too much for a kernel that rounds as ggml does.
        let dots = [
            dot("blk.0.attn_q", BlockType::Q2_K, 3e-6),
            dot("blk.0.attn_k", BlockType::Q2_K, 0.0),
        ];
        let failed: Vec<_> = checks(&dots, &[]).into_iter().filter(|check| !check.pass).collect();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].id, CheckId::ProductsEightBits);
        assert!(failed[0].details[0].starts_with("'blk.0.attn_q' is the worst of 2"));
    }

    #[test]
    fn a_product_that_is_no_number_fails() {
        let mut broken = dot("output", BlockType::Q2_K, 0.0);
        broken.facts.kernel = -f64::NAN; // the sign that x86 gives to inf - inf
        let found = checks(&[dot("blk.0.attn_q", BlockType::Q2_K, 0.0), broken], &[]);
        assert!(!found[0].pass, "{:?}", found[0]);
    }
}
