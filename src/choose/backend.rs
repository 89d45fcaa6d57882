//! The kernels that round activations as the backends of llama.cpp do that a file may be run on
//! ([`crate::engine::backends`]). Metal does not round them, which costs less than any of these.

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
                    assert_eq!(
                        ours.scales().grouping(ty, 256).group(),
                        of_many,
                        "{ty} on {}",
                        ours.name()
                    );
                }
            }
        }
    }
}
