//! The checkpoint as the verifier reads it: its linears by the scheme that they were trained with, and in which row of
//! the file each row has to be.

use std::ops::Range;

use formats::safetensors::Tensor;
use half::f16;
use rayon::prelude::*;

use super::VerifyError;
use super::schemes::{self, Room, Ternarize};
use crate::blueprint::Linear;
use crate::model::{Checkpoint, Config, RopeScaling};

/// A linear of the checkpoint, with the scale of every group.
pub(super) struct Latent<'a> {
    checkpoint: &'a Checkpoint,
    linear: Linear,
    scheme: Box<dyn Ternarize + 'a>,
    /// The bias that the layer has of its own. (rows,)
    own_bias: Option<Tensor<'a>>,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// Weights a scale, over the flattened matrix.
    pub group_size: usize,
    /// The trained scale of every group of the flattened matrix.
    pub scales: Vec<f32>,
    /// What a file with f16 scales can hold of them: the nearest f16, or the trained one where f16 has only a poorer
    /// subnormal number.
    pub references: Vec<f32>,
}

/// One row of it.
#[derive(Default)]
pub(super) struct LatentRow {
    room: Room,
    /// (columns,)
    pub codes: Vec<i8>,
    /// The offline bias and the layer's own.
    pub bias: f64,
}

impl<'a> Latent<'a> {
    /// Take the scales of all groups.
    ///
    /// # Errors
    /// A weight that is NaN or infinite.
    pub fn new(checkpoint: &'a Checkpoint, linear: Linear) -> Result<Self, VerifyError> {
        let (rows, columns) = linear.shape(&checkpoint.config.dims);
        let scheme = schemes::of(checkpoint, linear);
        let group_size = scheme.group_size();
        let scales = (0..(rows * columns).div_ceil(group_size))
            .into_par_iter()
            .map(|group| scheme.scale(group))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|index| VerifyError::not_finite(checkpoint, linear, "weight", index, columns))?;
        let references = scales.iter().map(|&scale| reference(scale)).collect();
        Ok(Self {
            checkpoint,
            linear,
            scheme,
            own_bias: checkpoint.tensors.get(&format!("{}.bias", linear.checkpoint_name())),
            rows,
            columns,
            group_size,
            scales,
            references,
        })
    }

    /// How many zeros were chosen among weights of equal magnitude.
    pub fn ties(&self) -> u64 {
        self.scheme.ties()
    }

    /// The groups that row `row` lies in, and the columns that each covers.
    pub fn runs(&self, row: usize) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        schemes::runs(row, self.columns, self.group_size)
    }

    /// Codes and bias of row `row` of the checkpoint.
    ///
    /// # Errors
    /// A number beside the weights, or a bias, that is NaN or infinite.
    pub fn read(&self, row: usize, out: &mut LatentRow) -> Result<(), VerifyError> {
        let not_finite = |part| {
            let (index, columns) = (row * self.columns, self.columns);
            VerifyError::not_finite(self.checkpoint, self.linear, part, index, columns)
        };
        out.codes.resize(self.columns, 0);
        let bias = self.scheme.split(row, &self.scales, &mut out.room, &mut out.codes);
        let mut own = [0.0];
        if let Some(bias) = self.own_bias {
            bias.read_f32(row, &mut own);
        }
        if !own[0].is_finite() {
            return Err(not_finite("bias"));
        }
        out.bias = bias.map_err(not_finite)? + self.scheme.bias_factor() * f64::from(own[0]);
        Ok(())
    }

    /// The dense row `row` of the checkpoint, A = scale * code; returns its bias.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn dense(&self, row: usize, out: &mut LatentRow, a: &mut [f32]) -> Result<f64, VerifyError> {
        self.read(row, out)?;
        for (group, run) in self.runs(row) {
            for (a, &code) in a[run.clone()].iter_mut().zip(&out.codes[run]) {
                *a = self.scales[group] * f32::from(code);
            }
        }
        Ok(out.bias)
    }
}

/// What a file with f16 scales can hold of a trained one: the nearest f16, or the trained one where f16 has only a poorer
/// subnormal number.
pub(super) fn reference(scale: f32) -> f32 {
    let rounded = f16::from_f32(scale);
    if rounded.is_normal() { rounded.to_f32() } else { scale }
}

/// The checkpoint's row that has to stand in each row of the file.
///
/// transformers turns dimension i of a head together with i + head_dim / 2 by the angle of frequency i; llama.cpp's
/// `llama` turns 2i together with 2i + 1 by it. So the two members of pair i move from the one place to the other.
pub(super) fn row_order(linear: Linear, config: &Config) -> Vec<usize> {
    let (rows, _) = linear.shape(&config.dims);
    let mut order: Vec<usize> = (0..rows).collect();
    if config.architecture.graph.interleaves(linear.part) {
        let head_dim = config.dims.head_dim;
        let pairs = head_dim / 2;
        for head in (0..rows).step_by(head_dim) {
            for pair in 0..pairs {
                order[head + 2 * pair] = head + pair;
                order[head + 2 * pair + 1] = head + pair + pairs;
            }
        }
    }
    order
}

/// By how much each pair of dimensions turns slower than without scaling, for Llama 3's scaling: (head_dim / 2,).
///
/// In terms of frequencies (transformers, `_compute_llama3_parameters`): those above `high / original` turns a token
/// stay, those below `low / original` are divided by `factor`, and between them both are mixed evenly.
pub(super) fn rope_factors(config: &Config) -> Option<Vec<f64>> {
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_context,
    } = config.rope.scaling
    else {
        return None;
    };
    let head_dim = config.dims.head_dim;
    let slower = |pair: usize| {
        let angle = config.rope.theta.powf(-((2 * pair) as f64) / head_dim as f64);
        let turns = original_context * angle / (2.0 * std::f64::consts::PI); // over the original context
        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / (kept + (1.0 - kept) / factor)
    };
    Some((0..head_dim / 2).map(slower).collect())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use formats::safetensors::{self, Entry};

    use super::*;
    use crate::blueprint::Part;
    use crate::engine::Engine;
    use crate::engine::oracle::{Oracle, Precision};
    use crate::metrics;
    use crate::model::{Source, TrainingOverrides};
    use crate::verify::references::Latent as Weights;

    fn fixtures() -> Vec<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let corners = std::fs::read_dir(root.join("corners")).unwrap();
        let mut folders: Vec<_> = corners.map(|entry| entry.unwrap().path()).collect();
        // The same checkpoint with more of PyTorch's logits, where the larger data is.
        let data = std::env::var_os("TQCONV_DATA").map_or(root.join("../../shared/data"), PathBuf::from);
        folders.extend(Some(data.join("kjv-tequila")).filter(|folder| folder.exists()));
        folders.extend(["families/sherry", "families/bitnet-online", "kjv"].map(|name| root.join(name)));
        folders
    }

    fn open(folder: &Path) -> Checkpoint {
        let source = Source::find(folder, None, None).unwrap();
        Checkpoint::open(source, &TrainingOverrides::default()).unwrap()
    }

    /// What PyTorch computed of a checkpoint.
    struct Golden(Vec<u8>, Vec<Entry>);

    impl Golden {
        fn read(folder: &Path) -> Self {
            let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
            let entries = safetensors::parse(&bytes).unwrap();
            Self(bytes, entries)
        }

        fn bytes(&self, name: &str) -> Option<&[u8]> {
            let entry = self.1.iter().find(|entry| entry.name == name)?;
            Some(entry.view(&self.0).bytes)
        }

        fn four_bytes<T>(&self, name: &str, number: impl Fn([u8; 4]) -> T) -> Vec<T> {
            let bytes = self.bytes(name).unwrap().as_chunks().0;
            bytes.iter().map(|&bytes| number(bytes)).collect()
        }
    }

    #[test]
    fn the_oracle_on_the_latent_checkpoint_is_pytorch() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families");
        let families = ["ternary-float", "bitnet-packed", "bonsai"].map(|name| root.join(name));
        for folder in fixtures().into_iter().chain(families) {
            let (checkpoint, golden) = (open(&folder), Golden::read(&folder));
            let tokens = golden.four_bytes("tokens", u32::from_le_bytes);
            let expected = golden.four_bytes("logits", f32::from_le_bytes);
            let found = Oracle {
                weights: &Weights::new(&checkpoint),
                precision: Precision::Double,
            }
            .logits(&tokens)
            .unwrap();
            let nmse = metrics::nmse(&expected, &found);
            println!("{}: NMSE {nmse:.1e}", folder.display());
            assert!(nmse < 1e-8);
        }
    }

    #[test]
    fn codes_scales_and_biases_are_pytorch_s() {
        for folder in fixtures() {
            let (checkpoint, golden) = (open(&folder), Golden::read(&folder));
            for linear in checkpoint.config.linears() {
                let latent = Latent::new(&checkpoint, linear).unwrap();
                let name = linear.checkpoint_name();
                let scales = golden.four_bytes(&format!("{name}.scale"), f32::from_le_bytes);
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * a.abs();
                assert_eq!(scales.len(), latent.scales.len(), "{name}");
                assert!(scales.iter().zip(&latent.scales).all(close), "{name}");
                let codes = golden.bytes(&format!("{name}.codes"));
                let biases = golden.bytes(&format!("{name}.bias")).map(|bytes| bytes.as_chunks().0);
                assert!(biases.is_none_or(|biases| biases.len() == latent.rows), "{name}");
                let mut row = LatentRow::default();
                for index in 0..latent.rows {
                    latent.read(index, &mut row).unwrap();
                    let bias = biases.map_or(0.0, |biases| f64::from_le_bytes(biases[index]));
                    assert!((row.bias - bias).abs() <= 1e-9 * bias.abs().max(1e-3), "{name} {index}");
                    if let Some(codes) = codes {
                        let codes = &codes[index * latent.columns..][..latent.columns];
                        assert!(
                            codes.iter().zip(&row.codes).all(|(&a, &b)| a as i8 == b),
                            "{name} {index}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn pairs_of_the_rotation_stand_side_by_side() {
        let checkpoint = open(fixtures().last().unwrap());
        let order = row_order(
            Linear {
                layer: 0,
                part: Part::K,
            },
            &checkpoint.config,
        );
        // Heads of 64: dimensions 0 and 32 turn together, then 1 and 33.
        assert_eq!(order[..4], [0, 32, 1, 33]);
        assert_eq!(order[62..66], [31, 63, 64, 96]);
        let plain = row_order(
            Linear {
                layer: 0,
                part: Part::V,
            },
            &checkpoint.config,
        );
        assert!(plain.into_iter().eq(0..128));
    }

    #[test]
    fn rotary_factors_by_hand() {
        let mut config = open(fixtures().last().unwrap()).config;
        assert_eq!(rope_factors(&config), None);
        (config.dims.head_dim, config.rope.theta) = (4, 1e6);
        config.rope.scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 800.0,
        };
        // 800 / tau = 127 turns: fast, stays. 0.127 turns: slow, divided by 8.
        assert_eq!(rope_factors(&config), Some(vec![1.0, 8.0]));
        // 2.5 turns lie half way from 1 to 4.
        config.rope.theta = (127.32395447351627f64 / 2.5).powi(2);
        let found = rope_factors(&config).unwrap();
        assert!((found[1] - 1.0 / (0.5 + 0.5 / 8.0)).abs() < 1e-12, "{found:?}");
    }
}
