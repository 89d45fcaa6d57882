//! The backends of llama.cpp that a file is chosen for. How each rounds activations is in [`crate::engine::backends`]: on
//! CUDA with Q2_K a scale per 64 for many tokens, which is what is measured here, and per 32 for few. Metal does not round
//! them, which costs less than any of these; so do Vulkan's shaders where the device has no integer dots.

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
