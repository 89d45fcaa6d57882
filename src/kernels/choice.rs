//! Which activations a matrix is multiplied with.

use super::contract::Grouping;
use formats::block::BlockType;

/// How many activations share a scale when they are rounded to 8 bits. (F32, F16 and BF16 weights multiply activations
/// that are not rounded to 8 bits.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActivationScales {
    /// As many as in llama.cpp's CPU backend: 256 for TQ1_0, TQ2_0 and the K types, 32 for Q2_0, Q4_0 and Q8_0.
    #[default]
    LlamaCpp,
    /// 64 where llama.cpp has 256.
    Per64,
    /// 32 everywhere.
    Per32,
    /// 256, 128 or 64, whichever divides the columns, for Q2_0 and Q4_0, too: less work and less accuracy.
    Fast,
}

impl ActivationScales {
    pub const ALL: [ActivationScales; 4] = [
        ActivationScales::LlamaCpp,
        ActivationScales::Per64,
        ActivationScales::Per32,
        ActivationScales::Fast,
    ];

    /// As it is written in an option.
    pub fn name(self) -> &'static str {
        match self {
            ActivationScales::LlamaCpp => "llama.cpp",
            ActivationScales::Per64 => "per-64",
            ActivationScales::Per32 => "per-32",
            ActivationScales::Fast => "fast",
        }
    }

    /// The activations that a matrix of this type and so many columns multiplies; llama.cpp's are those of ggml-cpu.c
    /// (`type_traits_cpu`, `vec_dot_type`).
    pub fn grouping(self, ty: BlockType, columns: usize) -> Grouping {
        match ty {
            BlockType::F32 | BlockType::F16 | BlockType::BF16 => Grouping::Float,
            BlockType::Q2_0 | BlockType::Q4_0 if self == ActivationScales::Fast => {
                let group = [256, 128, 64].into_iter().find(|&group| columns.is_multiple_of(group));
                group.map_or(Grouping::Q8_0, Grouping::K)
            }
            BlockType::Q2_0 | BlockType::Q4_0 | BlockType::Q8_0 => Grouping::Q8_0,
            _ => match self {
                ActivationScales::Per32 => Grouping::Q8_0,
                ActivationScales::Per64 => Grouping::K(64),
                ActivationScales::LlamaCpp | ActivationScales::Fast => Grouping::K(256),
            },
        }
    }
}

impl std::fmt::Display for ActivationScales {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
