//! The rule: the smallest block type that loads and is fast where the file is to run, within the allowed error.
//! docs/types.md has the measurements behind the lists.

use formats::block::BlockType;

/// Where the file is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// llama.cpp on every backend, and Ollama.
    Any,
    /// llama.cpp on x86 processors.
    Cpu,
    /// llama.cpp on GPUs.
    Gpu,
    /// llama.cpp on Arm processors.
    Arm,
    /// Ollama.
    Ollama,
}

impl Target {
    /// The types to try, smallest first. TQ1_0 is smaller than all of them but half as fast as TQ2_0 everywhere: it is
    /// taken only when it is asked for.
    pub fn candidates(self) -> &'static [BlockType] {
        use BlockType::{Q2_0, Q2_K, Q4_0, Q8_0, TQ2_0};
        match self {
            Target::Any | Target::Ollama => &[Q2_K, Q4_0, Q8_0],
            Target::Cpu => &[TQ2_0, Q2_K, Q4_0, Q8_0],
            Target::Gpu | Target::Arm => &[Q2_0, Q2_K, Q4_0, Q8_0],
        }
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Target::Any => "any",
            Target::Cpu => "cpu",
            Target::Gpu => "gpu",
            Target::Arm => "arm",
            Target::Ollama => "ollama",
        }
    }
}

/// The types that a linear can be stored in.
pub const PACKABLE: [BlockType; 9] = [
    BlockType::TQ1_0,
    BlockType::TQ2_0,
    BlockType::Q2_0,
    BlockType::Q2_K,
    BlockType::Q4_0,
    BlockType::Q8_0,
    BlockType::F16,
    BlockType::BF16,
    BlockType::F32,
];

/// The types that embedding and head can be stored in where they are ternary, and only there.
pub const TERNARY_TABLES: [BlockType; 5] = [
    BlockType::TQ1_0,
    BlockType::TQ2_0,
    BlockType::Q2_0,
    BlockType::Q2_K,
    BlockType::Q4_0,
];

/// The types that embedding and head can be stored in, whatever their numbers are.
pub const TABLES: [BlockType; 6] = [
    BlockType::F32,
    BlockType::F16,
    BlockType::BF16,
    BlockType::Q8_0,
    BlockType::Q6_K,
    BlockType::Q4_K,
];

/// How the type of each linear is found.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Where the file is to run.
    pub target: Target,
    /// The relative squared error that storing a matrix may add.
    pub max_nmse: f64,
    /// Whether the types are chosen by what they do to the output ([`Plan::choose`](super::Plan::choose)): then F16
    /// stands behind the list, whose activations are not rounded to 8 bits.
    pub measured: bool,
    /// One type for all linears.
    pub ty: Option<BlockType>,
    /// A type for the linears whose GGUF name contains the text; the first that fits wins, before `ty`.
    pub tensor_types: Vec<(String, BlockType)>,
}

impl Rule {
    /// The types to try for the linear `name`, in order.
    pub fn candidates(&self, name: &str) -> Vec<BlockType> {
        let by_name = self
            .tensor_types
            .iter()
            .find(|(text, _)| name.contains(text))
            .map(|(_, ty)| *ty);
        match by_name.or(self.ty) {
            Some(ty) => vec![ty],
            None => {
                let last = self.measured.then_some(BlockType::F16);
                self.target.candidates().iter().copied().chain(last).collect()
            }
        }
    }
}

/// Why a linear is not of the smallest type that the rule would take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Larger {
    /// Its columns fill no blocks of that type.
    Width {
        /// The smallest type.
        ty: BlockType,
        /// Columns of the linear.
        columns: usize,
    },
    /// That type would lose more than is allowed.
    Loss {
        /// The smallest type.
        ty: BlockType,
        /// The NMSE in it, of some rows or of all.
        nmse: f64,
    },
    /// That type would lose something, and the input was packed with a loss.
    LossAgain {
        /// The smallest type.
        ty: BlockType,
        /// What it would lose beside, as an NMSE.
        nmse: f64,
    },
}

/// How the embedding and the head are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embedding {
    /// As the input has them.
    Keep,
    /// In this type.
    As(BlockType),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_type_that_is_packed_has_a_number() {
        assert!(PACKABLE.iter().all(|ty| ty.file_type().is_some()));
        assert_eq!(
            BlockType::ALL.iter().filter(|ty| ty.file_type().is_some()).count(),
            PACKABLE.len()
        );
    }
}
