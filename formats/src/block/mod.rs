//! Block types of ggml: how weights become bytes.
//!
//! [`BlockType`] says what every type id means and how large its blocks are. One module per codec
//! holds the byte layout; the row functions in `row` run a codec over a whole row and check
//! every length once. The arithmetic of each codec equals ggml's bit for bit.

pub mod float;
pub mod pq2_0;
pub mod ptq1_0;
pub mod q2_0;
pub mod q2_k;
pub mod q4_0;
pub mod q4_k;
pub mod q6_k;
pub mod q8_0;
pub mod tq1_0;
pub mod tq2_0;

mod error;
mod fit;
mod planes;
mod row;
mod ternary;
#[cfg(test)]
mod tests;

pub use error::{BlockError, Found, NotTernary, Verb};

use std::fmt;

/// A cell of the table that may be empty.
macro_rules! number {
    (-) => {
        None
    };
    ($number:literal) => {
        Some($number)
    };
}

/// A cell of the table that is a yes or empty.
macro_rules! is_yes {
    (-) => {
        false
    };
    (yes) => {
        true
    };
}

/// Builds the enum and its lookups from one table, so that each fact is written down once.
macro_rules! block_types {
    ($($variant:ident $id:literal $weights:literal $bytes:literal $run:tt $file:tt $cpu:tt $ollama:tt)*) => {
        /// A tensor type of ggml, spelled as in `enum ggml_type` (ggml.h:389-434), or of PrismML's fork of llama.cpp
        /// ([`is_prism`](Self::is_prism)).
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum BlockType { $($variant = $id),* }

        impl BlockType {
            /// Every type that ggml still knows, then those of PrismML's fork, by ascending id.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The type with this id; `None` for unknown and removed ids.
            pub const fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(Self::$variant),)* _ => None }
            }

            /// The name, for example `TQ2_0` or `Q2_K`. (`ggml_type_name` prints the same letters
            /// in another case, `tq2_0` and `q2_K`.)
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant)),* }
            }

            /// Weights in one block.
            pub const fn weights(self) -> usize {
                match self { $(Self::$variant => $weights),* }
            }

            /// Bytes of one block.
            pub const fn bytes(self) -> usize {
                match self { $(Self::$variant => $bytes),* }
            }

            /// Weights that share a scale in a type that holds ternary weights, `None` for other types.
            /// It divides [`weights`](Self::weights): only Q2_K has more than one scale in a block.
            pub const fn scale_run(self) -> Option<usize> {
                match self { $(Self::$variant => number!($run)),* }
            }

            /// `general.file_type` of a file whose matrices are of this type: `llama_ftype` of llama.h, for the types that
            /// a whole model can be packed in. Readers show it; it decides nothing.
            pub const fn file_type(self) -> Option<u32> {
                match self { $(Self::$variant => number!($file)),* }
            }

            /// Whether ggml multiplies such weights on the CPU (has a `vec_dot`, ggml-cpu.c:215-416); with others it
            /// jumps to nowhere.
            pub const fn has_cpu_product(self) -> bool {
                match self { $(Self::$variant => is_yes!($cpu)),* }
            }

            /// Whether Ollama's own reader knows the size of such blocks (fs/ggml/ggml.go, `typeSize`): of others
            /// `ollama create` says "size overflow".
            pub const fn ollama_reads(self) -> bool {
                match self { $(Self::$variant => is_yes!($ollama)),* }
            }
        }
    };
}

block_types! {
//          blocks: ggml.c:632-946, ggml-common.h:88-460
//  type    id  weights bytes  run  file  cpu  ollama
    F32      0    1   4        -     0  yes  yes
    F16      1    1   2        -     1  yes  yes
    Q4_0     2   32  18       32     2  yes  yes
    Q4_1     3   32  20        -     -  yes  yes
    Q5_0     6   32  22        -     -  yes  yes
    Q5_1     7   32  24        -     -  yes  yes
    Q8_0     8   32  34       32     7  yes  yes
    Q8_1     9   32  36        -     -  -    -
    Q2_K    10  256  84       16    10  yes  yes
    Q3_K    11  256 110        -     -  yes  yes
    Q4_K    12  256 144        -     -  yes  yes
    Q5_K    13  256 176        -     -  yes  yes
    Q6_K    14  256 210        -     -  yes  yes
    Q8_K    15  256 292        -     -  -    -
    IQ2_XXS 16  256  66        -     -  yes  yes
    IQ2_XS  17  256  74        -     -  yes  yes
    IQ3_XXS 18  256  98        -     -  yes  yes
    IQ1_S   19  256  50        -     -  yes  yes
    IQ4_NL  20   32  18        -     -  yes  yes
    IQ3_S   21  256 110        -     -  yes  yes
    IQ2_S   22  256  82        -     -  yes  yes
    IQ4_XS  23  256 136        -     -  yes  yes
    I8      24    1   1        -     -  -    -
    I16     25    1   2        -     -  -    -
    I32     26    1   4        -     -  -    -
    I64     27    1   8        -     -  -    -
    F64     28    1   8        -     -  -    -
    IQ1_M   29  256  56        -     -  yes  yes
    BF16    30    1   2        -    32  yes  yes
    TQ1_0   34  256  54      256    36  yes  -
    TQ2_0   35  256  66      256    37  yes  -
    MXFP4   39   32  17        -     -  yes  yes
    NVFP4   40   64  36        -     -  yes  yes
    Q1_0    41  128  18        -     -  yes  yes
    Q2_0    42   64  18       64    41  yes  -
//  PrismML's fork of llama.cpp (branch prism, ggml.h, ggml-common.h)
    PQ2_0  142  128  34      128     -  -    -
    PTQ1_0 143  128  28      128     -  -    -
}

impl BlockType {
    /// The ggml id, as stored in a GGUF tensor info.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Whether only PrismML's fork of llama.cpp has the type: such files are read, but no engine here runs them, and none
    /// are made.
    pub const fn is_prism(self) -> bool {
        matches!(self, Self::PQ2_0 | Self::PTQ1_0)
    }

    /// The type with this name in any case: `tq2_0`, `Q2_K`, `q2_k`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// The type that a file with this `general.file_type` says that it is of, if it is one that [`file_type`] gives.
    ///
    /// [`file_type`]: Self::file_type
    pub fn from_file_type(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|ty| ty.file_type() == Some(number))
    }

    /// Bytes of a row of `columns` weights: `columns / weights * bytes`.
    /// `None` where the row is not a whole number of blocks or the product overflows.
    pub const fn row_bytes(self, columns: usize) -> Option<usize> {
        if !columns.is_multiple_of(self.weights()) {
            return None;
        }
        (columns / self.weights()).checked_mul(self.bytes())
    }

    /// Stored bits per weight: `8 * bytes / weights`.
    pub fn bits_per_weight(self) -> f64 {
        8.0 * self.bytes() as f64 / self.weights() as f64
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name of a type that ggml once had under this id and has removed (ggml.h:394-428).
pub const fn removed_name(id: u32) -> Option<&'static str> {
    Some(match id {
        4 => "Q4_2",
        5 => "Q4_3",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => return None,
    })
}

#[cfg(test)]
mod table {
    use super::*;

    #[test]
    fn every_id_below_43_is_known_or_removed() {
        for id in 0..43 {
            assert_ne!(BlockType::from_id(id).is_some(), removed_name(id).is_some(), "id {id}");
        }
        assert_eq!(BlockType::from_id(43), None);
        assert_eq!(removed_name(43), None);
    }

    #[test]
    fn ids_and_names_lead_back_to_their_type() {
        for &ty in BlockType::ALL {
            assert_eq!(BlockType::from_id(ty.id()), Some(ty));
            assert_eq!(BlockType::from_name(ty.name()), Some(ty));
            assert_eq!(BlockType::from_name(&ty.name().to_ascii_lowercase()), Some(ty));
        }
        assert_eq!(BlockType::from_name("q2_k"), Some(BlockType::Q2_K));
        assert_eq!(BlockType::from_name("tq2"), None);
    }

    #[test]
    fn a_row_is_whole_blocks() {
        assert_eq!(BlockType::TQ2_0.row_bytes(2048), Some(528));
        assert_eq!(BlockType::TQ2_0.row_bytes(0), Some(0));
        assert_eq!(BlockType::TQ2_0.row_bytes(896), None);
        assert_eq!(BlockType::Q2_0.row_bytes(896), Some(252));
        assert_eq!(BlockType::F64.row_bytes(usize::MAX), None);
        assert_eq!(BlockType::TQ2_0.bits_per_weight(), 2.0625);
        assert_eq!(BlockType::Q2_K.to_string(), "Q2_K");
    }

    /// `llama_ftype` as numbered in include/llama.h:118-159 (llama-cpp-sys-2 0.1.161).
    #[test]
    fn file_types_are_llama_h_s() {
        for (number, ty) in [
            (0, BlockType::F32),    // LLAMA_FTYPE_ALL_F32
            (1, BlockType::F16),    // LLAMA_FTYPE_MOSTLY_F16
            (2, BlockType::Q4_0),   // ..._Q4_0
            (7, BlockType::Q8_0),   // ..._Q8_0
            (10, BlockType::Q2_K),  // ..._Q2_K
            (32, BlockType::BF16),  // ..._BF16
            (36, BlockType::TQ1_0), // ..._TQ1_0
            (37, BlockType::TQ2_0), // ..._TQ2_0
            (41, BlockType::Q2_0),  // ..._Q2_0
        ] {
            assert_eq!(ty.file_type(), Some(number), "{ty}");
            assert_eq!(BlockType::from_file_type(number), Some(ty));
        }
        assert_eq!(BlockType::ALL.iter().filter_map(|ty| ty.file_type()).count(), 9);
        assert_eq!(BlockType::from_file_type(15), None); // ..._Q4_K_M, a mixture
    }

    /// fs/ggml/ggml.go:407-513 of Ollama gives a size to these numbers of fs/ggml/type.go.
    #[test]
    fn ollama_reads_what_its_reader_has_a_size_for() {
        for ty in BlockType::ALL {
            let has_size = matches!(ty.id(), 0..=3 | 6..=8 | 10..=14 | 16..=23 | 29 | 30 | 39..=41);
            assert_eq!(ty.ollama_reads(), has_size, "{ty}");
        }
    }

    /// Types with a `.vec_dot` in ggml-cpu.c:215-416; tests/it/conformance.rs asks ggml itself.
    #[test]
    fn ggml_multiplies_all_but_seven_types_of_its_own() {
        let of_ggml = BlockType::ALL.iter().filter(|ty| ty.id() < 43);
        let without = of_ggml.filter(|ty| !ty.has_cpu_product());
        let names: Vec<_> = without.map(|ty| ty.name()).collect();
        assert_eq!(names, ["Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"]);
        assert!(
            ![BlockType::PQ2_0, BlockType::PTQ1_0]
                .iter()
                .any(|ty| ty.has_cpu_product())
        );
    }

    #[test]
    fn codec_sizes_are_the_table_s() {
        for (ty, weights, bytes) in [
            (BlockType::TQ1_0, tq1_0::WEIGHTS, tq1_0::BYTES),
            (BlockType::TQ2_0, tq2_0::WEIGHTS, tq2_0::BYTES),
            (BlockType::Q2_0, q2_0::WEIGHTS, q2_0::BYTES),
            (BlockType::PQ2_0, pq2_0::WEIGHTS, pq2_0::BYTES),
            (BlockType::PTQ1_0, ptq1_0::WEIGHTS, ptq1_0::BYTES),
            (BlockType::Q2_K, q2_k::WEIGHTS, q2_k::BYTES),
            (BlockType::Q4_0, q4_0::WEIGHTS, q4_0::BYTES),
            (BlockType::Q4_K, q4_k::WEIGHTS, q4_k::BYTES),
            (BlockType::Q6_K, q6_k::WEIGHTS, q6_k::BYTES),
            (BlockType::Q8_0, q8_0::WEIGHTS, q8_0::BYTES),
        ] {
            assert_eq!((ty.weights(), ty.bytes()), (weights, bytes), "{ty}");
            let run = if ty == BlockType::Q2_K {
                q2_k::SUB_BLOCK
            } else {
                weights
            };
            assert!(ty.scale_run().is_none_or(|stated| stated == run), "{ty}");
        }
    }
}
