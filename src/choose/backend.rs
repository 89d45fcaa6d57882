//! How the backends of llama.cpp round the activations that a type is multiplied with.
//!
//! | types | CPU (`vec_dot_type`, ggml-cpu/ggml-cpu.c) | CUDA |
//! |---|---|---|
//! | TQ1_0, TQ2_0 | a scale per 256 (Q8_K) | no kernel: these weights stay on the CPU |
//! | Q2_K | a scale per 256 (Q8_K) | per 64 for many tokens (`MMQ_Q8_1_DS_LAYOUT_D2S6`, ggml-cuda/mmq.cuh, quantize.cu), per 32 for few (`quantize_q8_1`) |
//! | Q2_0, Q4_0, Q8_0 | a scale per 32 (Q8_0) | per 32 |
//! | F16 | f16 | f16 or not at all |
//!
//! Metal multiplies activations that are not rounded (ggml-metal.metal, `kernel_mul_mm`), which costs less than any of
//! these; so do Vulkan's shaders where the device has no integer dots.

use crate::kernels::ActivationScales;
use crate::pack::Target;

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Processors.
    Cpu,
    /// GPUs of NVIDIA, on many tokens: the coarsest rounding of any GPU.
    Cuda,
}

impl Backend {
    /// Those that a file for `target` may be run on, the coarsest rounding first.
    pub fn of(target: Target) -> &'static [Backend] {
        match target {
            Target::Cpu | Target::Arm => &[Backend::Cpu],
            Target::Gpu => &[Backend::Cuda],
            Target::Any | Target::Ollama => &[Backend::Cpu, Backend::Cuda],
        }
    }

    /// As a key of JSON.
    pub fn key(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Cuda => "cuda",
        }
    }

    /// What reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Cpu => "CPUs",
            Backend::Cuda => "CUDA",
        }
    }

    /// The scales of its activations.
    pub(super) fn scales(self) -> ActivationScales {
        match self {
            Backend::Cpu => ActivationScales::LlamaCpp,
            Backend::Cuda => ActivationScales::Per64,
        }
    }
}
