//! What a file may be run on, by how it rounds activations: the backends of llama.cpp ([`crate::engine::backends`]) and our
//! own engine. Metal does not round them, which costs less than any of these.

use crate::kernels::{ActivationScales, Isa, Options};
use crate::pack::Target;

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// llama.cpp on processors.
    Cpu,
    /// Our engine, with activations of these scales: as llama.cpp with the same, but for activations of halves. Where
    /// activations have outliers, even so small a difference decides how those of a whole window are rounded.
    Native(ActivationScales),
    /// llama.cpp on GPUs of NVIDIA, on many tokens: the coarsest rounding of any GPU.
    Cuda,
}

impl Backend {
    /// Our engine as it is by default.
    pub const NATIVE: Backend = Backend::Native(ActivationScales::LlamaCpp);

    /// Those that a file for `target` may be run on, the coarsest rounding first.
    pub fn of(target: Target) -> &'static [Backend] {
        match target {
            Target::Cpu | Target::Arm => &[Backend::Cpu, Backend::NATIVE],
            Target::Gpu => &[Backend::Cuda, Backend::Native(ActivationScales::Per64)],
            Target::Any | Target::Ollama => &[Backend::Cpu, Backend::NATIVE, Backend::Cuda],
        }
    }

    /// As a key of JSON.
    pub fn key(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Native(_) => "native",
            Backend::Cuda => "cuda",
        }
    }

    /// Where that is, for reports.
    pub fn place(self) -> &'static str {
        match self {
            Backend::Cpu => "on CPUs",
            Backend::Native(_) => "in tqconv",
            Backend::Cuda => "on CUDA",
        }
    }

    /// How our kernels multiply as it does.
    pub(super) fn options(self, isa: Isa) -> Options {
        Options {
            isa,
            activations: match self {
                Backend::Cpu => ActivationScales::LlamaCpp,
                Backend::Native(scales) => scales,
                Backend::Cuda => ActivationScales::Per64,
            },
            halves: !matches!(self, Backend::Native(_)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::backends;
    use crate::pack::PACKABLE;

    /// TQ1_0 and TQ2_0 stay on the CPU, whatever else is on a GPU; floats are not rounded to 8 bits.
    #[test]
    fn activations_are_rounded_as_by_llama_cpp() {
        for (ours, theirs) in [
            (Backend::Cpu, backends::Backend::Cpu),
            (Backend::Cuda, backends::Backend::Cuda),
        ] {
            for ty in PACKABLE {
                if let Some(of_many) = theirs.rounded(ty).and_then(|rounded| rounded.many) {
                    let grouping = ours.options(Isa::Scalar).grouping(ty, 256);
                    assert_eq!(grouping.group(), of_many, "{ty} {}", ours.place());
                }
            }
        }
    }
}
