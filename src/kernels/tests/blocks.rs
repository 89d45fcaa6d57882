//! Weights to test with.

use formats::block::BlockType;

/// A seeded source of test values (xorshift64*).
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// Roughly normal, variance 1.
    pub(super) fn float(&mut self) -> f32 {
        let uniform = |random: &mut Random| random.next() as u32 as f32 / u32::MAX as f32;
        (0..12).map(|_| uniform(self)).sum::<f32>() - 6.0
    }

    pub(super) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

/// Bytes in which every bit is random, except that every f16 is a small finite number.
pub(super) fn random_blocks(random: &mut Random, ty: BlockType, weights: usize) -> Vec<u8> {
    let scales: &[usize] = match ty {
        BlockType::TQ2_0 => &[64],
        BlockType::TQ1_0 => &[52],
        BlockType::Q2_K => &[80, 82],
        BlockType::Q4_K => &[0, 2],
        BlockType::Q6_K => &[208],
        _ => &[0],
    };
    let mut bytes: Vec<u8> = (0..weights / ty.weights() * ty.bytes())
        .map(|_| random.next() as u8)
        .collect();
    for block in bytes.chunks_exact_mut(ty.bytes()) {
        match ty {
            BlockType::F32 => block.copy_from_slice(&random.float().to_le_bytes()),
            BlockType::BF16 => block.copy_from_slice(&half::bf16::from_f32(random.float()).to_le_bytes()),
            _ => {
                for &at in scales {
                    let scale = half::f16::from_f32(0.01 * random.float());
                    block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
        }
        if ty == BlockType::TQ1_0 {
            // Only what five (or four) base-3 digits can make: v -> ceil(v * 256 / 243).
            for (i, byte) in block[..52].iter_mut().enumerate() {
                let value = if i < 48 {
                    *byte as u32 % 243
                } else {
                    *byte as u32 % 81 * 3
                };
                *byte = (value * 256).div_ceil(243) as u8;
            }
        }
    }
    bytes
}

/// Random blocks whose factors are equal in every run of `run` columns; where there are minimums, they equal the scales.
pub(super) fn blocks_with_runs(random: &mut Random, ty: BlockType, weights: usize, run: usize) -> Vec<u8> {
    let mut bytes = random_blocks(random, ty, weights);
    let scale_at = match ty {
        BlockType::TQ2_0 => 64,
        BlockType::TQ1_0 => 52,
        BlockType::Q2_K => 80,
        BlockType::Q6_K => 208,
        _ => 0,
    };
    let (mut scale, mut multiplier) = ([0; 2], 0);
    for (i, block) in bytes.chunks_exact_mut(ty.bytes()).enumerate() {
        if (i * ty.weights()).is_multiple_of(run) {
            scale.copy_from_slice(&block[scale_at..][..2]);
        }
        block[scale_at..][..2].copy_from_slice(&scale);
        for group in 0..16usize {
            if (group * 16).is_multiple_of(run) {
                multiplier = random.next() as u8;
            }
            match ty {
                BlockType::Q2_K => block[group] = multiplier % 16 * 0x11,
                BlockType::Q6_K => block[192 + group] = multiplier,
                // Powers of two, so that every scale is an f16.
                BlockType::Q4_K if group % 2 == 0 => {
                    let (j, multiplier) = (group / 2, 1 << (multiplier % 4));
                    match j {
                        0..4 => (block[4 + j], block[8 + j]) = (multiplier, multiplier),
                        _ => block[8 + j] = multiplier * 0x11,
                    }
                }
                _ => {}
            }
        }
        match ty {
            BlockType::Q2_K => block[82..84].copy_from_slice(&scale),
            BlockType::Q4_K => block[2..4].copy_from_slice(&scale),
            _ => {}
        }
    }
    bytes
}

/// [`blocks_with_runs`] with codes that mean -1, 0 and +1 alone.
pub(super) fn ternary_blocks(random: &mut Random, ty: BlockType, weights: usize, run: usize) -> Vec<u8> {
    let mut bytes = blocks_with_runs(random, ty, weights, run);
    for block in bytes.chunks_exact_mut(ty.bytes()) {
        let codes = match ty {
            BlockType::TQ2_0 => 0..64,
            BlockType::Q2_0 | BlockType::Q4_0 => 2..18,
            BlockType::Q2_K => 16..80,
            _ => 0..0, // TQ1_0 has no others
        };
        for byte in &mut block[codes] {
            let code = |place: u32| ((u32::from(*byte) >> place & 3) % 3) << place;
            *byte = match ty {
                BlockType::Q4_0 => (code(0) | code(4)) as u8 + 0x77,
                _ => (code(0) | code(2) | code(4) | code(6)) as u8,
            };
        }
    }
    bytes
}
