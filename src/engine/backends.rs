//! How llama.cpp's backends round the activations that they multiply by weights of a type, read in the sources of
//! llama-cpp-sys-2 0.1.161 (ggml/src). Ollama runs the same backends.

use formats::block::BlockType;

/// Where llama.cpp multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Cpu,
    Cuda,
    Metal,
}

/// How many activations share a scale in 8 bits; None: they are not rounded to 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounded {
    /// Of up to 8 tokens, as in decoding.
    pub few: Option<usize>,
    /// Of more.
    pub many: Option<usize>,
}

impl Rounded {
    const NOT: Rounded = Rounded { few: None, many: None };

    const fn per(activations: usize) -> Rounded {
        Rounded {
            few: Some(activations),
            many: Some(activations),
        }
    }
}

impl Backend {
    pub const ALL: [Backend; 3] = [Backend::Cpu, Backend::Cuda, Backend::Metal];

    pub fn name(self) -> &'static str {
        match self {
            Backend::Cpu => "CPU",
            Backend::Cuda => "CUDA",
            Backend::Metal => "Metal",
        }
    }

    /// What it does to the activations of a matrix of this type; None where it has no product of it, which is then left
    /// to the CPU, or where that is not known here.
    ///
    /// CPU: `vec_dot_type` in ggml-cpu/ggml-cpu.c:215-415, Q8_0 or Q8_K. CUDA: Q8_1 (ggml-cuda/quantize.cu:57), and for
    /// more than 8 tokens (`MMVQ_MAX_BATCH_SIZE`) with Q2_K a scale per 64 (quantize.cu:462, mmq.cuh:79). Metal: f32 and,
    /// for many tokens, f16 (kernels/mul_mv.metal, mul_mm.metal).
    pub fn rounded(self, ty: BlockType) -> Option<Rounded> {
        use BlockType::{Q2_0, Q2_K, Q4_0, Q4_K, Q6_K, Q8_0, TQ1_0, TQ2_0};
        match (self, ty) {
            (Backend::Cpu, Q2_0 | Q4_0 | Q8_0) => Some(Rounded::per(32)),
            (Backend::Cpu, TQ1_0 | TQ2_0 | Q2_K | Q4_K | Q6_K) => Some(Rounded::per(256)),
            (Backend::Cuda, Q2_K) => Some(Rounded {
                few: Some(32),
                many: Some(64),
            }),
            (Backend::Cuda, Q2_0 | Q4_0 | Q8_0 | Q4_K | Q6_K) => Some(Rounded::per(32)),
            (Backend::Metal, Q2_0 | Q4_0 | Q8_0 | Q2_K | Q4_K | Q6_K | TQ2_0) => Some(Rounded::NOT),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::ActivationScales;

    /// Our engine does by default what llama.cpp's CPU backend does; tests/it/dots.rs compares the products.
    #[test]
    fn the_cpu_s_are_those_of_our_engine() {
        let mut compared = 0;
        for &ty in BlockType::ALL {
            if let Some(rounded) = Backend::Cpu.rounded(ty) {
                let group = ActivationScales::LlamaCpp.grouping(ty, 1024).group();
                assert_eq!(rounded, Rounded::per(group), "{ty}");
                compared += 1;
            }
        }
        assert_eq!(compared, 8);
    }
}
