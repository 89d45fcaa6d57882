//! The instruction sets that kernels are written for, and which of them this CPU has.
//!
//! A kernel value is the proof of its instructions: [`Isa::backend`] gives one only after the CPU was asked,
//! and nothing else makes one.

#[cfg(target_arch = "aarch64")]
use super::aarch64;
use super::kernel::Backend;
#[cfg(target_arch = "x86_64")]
use super::kernel::LoadGemm;
use super::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use super::x86;

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use super::bf16::Bf16Tiles;
#[cfg(target_arch = "x86_64")]
pub(crate) use super::x86::Bf16Tiles;

/// An instruction set with a kernel of its own. Every one of them gives the same bits as [`Isa::Scalar`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust; runs everywhere and is what the others are compared with.
    Scalar,
    /// x86-64 AVX2 with FMA and F16C: `vpmaddubsw` on 32 bytes.
    Avx2,
    /// AVX2 and AVX-VNNI: `vpdpbusd` on 32 bytes.
    AvxVnni,
    /// AVX-512 F, BW, VL and VNNI: `vpdpbusd` on 64 bytes.
    Avx512Vnni,
    /// The same and, for many tokens and ternary codes, sums looked up by `vpermw` beside it: for CPUs whose ports it
    /// leaves idle.
    Avx512Lookup,
    /// AVX-512 VNNI and, for many tokens and ternary codes, AMX-INT8: `tdpbssd` on tiles.
    Amx,
    /// AArch64 NEON with `sdot`.
    NeonDot,
    /// AArch64 NEON with `sdot` and, for several tokens, `smmla`.
    NeonI8mm,
}

impl Isa {
    /// All instruction sets, slowest first.
    pub const ALL: [Isa; 8] = [
        Isa::Scalar,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512Vnni,
        Isa::Avx512Lookup,
        Isa::Amx,
        Isa::NeonDot,
        Isa::NeonI8mm,
    ];

    /// The fastest one that this CPU has.
    pub fn best() -> Isa {
        let mut available = Isa::available();
        available.retain(|&isa| isa != Isa::Avx512Lookup || lut_pays());
        *available.last().expect("scalar is always there")
    }

    /// All that this CPU has, slowest first, so the first is [`Isa::Scalar`].
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.backend().is_some()).collect()
    }

    /// The name used in reports, such as `avx512vnni`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Avx512Lookup => "avx512lookup",
            Isa::Amx => "amx",
            Isa::NeonDot => "neon-dotprod",
            Isa::NeonI8mm => "neon-i8mm",
        }
    }

    /// Tile registers of this thread for products of bf16: of [`Isa::Amx`], where the CPU has AMX-BF16, too.
    pub(crate) fn bf16_tiles(self) -> Option<Bf16Tiles> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Bf16Tiles::configure(),
            _ => None,
        }
    }

    /// The backend, or None where the CPU lacks an instruction that it needs.
    pub(super) fn backend(self) -> Option<Backend> {
        let backend = |gemv| Backend {
            name: self.name(),
            gemv,
            gemm: None,
            lines: None,
        };
        #[cfg(target_arch = "x86_64")]
        let with_gemm = |(gemv, gemm): (_, LoadGemm)| Backend {
            gemm: Some(gemm),
            ..backend(gemv)
        };
        match self {
            Isa::Scalar => Some(backend(&Scalar)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::avx2().map(with_gemm),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => x86::avx_vnni().map(with_gemm),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => x86::avx512_vnni().map(backend),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Lookup => x86::avx512_vnni().map(|gemv| with_gemm((gemv, x86::load_lut))),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => x86::avx512_amx().map(|way| Backend {
                lines: Some(x86::TILES_FROM),
                ..with_gemm(way)
            }),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => aarch64::dotprod().map(backend),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => aarch64::i8mm().map(backend),
            #[allow(unreachable_patterns, reason = "the other architecture's variants")]
            _ => None,
        }
    }
}

/// Whether [`Isa::Avx512Lookup`] is known to be faster than [`Isa::Avx512Vnni`] on this CPU: on a Zen 4 it is, on an
/// Emerald Rapids it is not, and nowhere else was it measured.
fn lut_pays() -> bool {
    #[cfg(target_arch = "x86_64")]
    return x86::is_zen_4();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> Result<Isa, String> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            let known = Isa::ALL.map(Isa::name).join(", ");
            format!("no instruction set is called '{name}'; known: {known}")
        })
    }
}
