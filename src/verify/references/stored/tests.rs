use super::*;
use crate::kernels::Grouping;

#[test]
fn an_interleaved_row_is_found() {
    let rows = StoredRows {
        ty: BlockType::F32,
        bytes: &[],
        bias: None,
        shape: (12, 1),
        interleaved: Some(6),
        activations: ActivationScales::LlamaCpp,
    };
    // Dimensions 0, 3 of a head of 6 stand first, then 1, 4: transformers' pairs.
    let places: Vec<_> = (0..12).map(|row| rows.place(row)).collect();
    assert_eq!(places, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
}

/// The kernels' choice, stated a second time: for each type and each way the same number of activations to a scale.
#[test]
fn activations_are_rounded_as_the_kernels_round_them() {
    let types = [
        BlockType::F32,
        BlockType::TQ1_0,
        BlockType::TQ2_0,
        BlockType::Q2_0,
        BlockType::Q2_K,
        BlockType::Q4_0,
        BlockType::Q4_K,
        BlockType::Q6_K,
        BlockType::Q8_0,
    ];
    for ty in types {
        for columns in [1024, 1152, 576, 96] {
            for activations in ActivationScales::ALL {
                let rows = StoredRows {
                    ty,
                    bytes: &[],
                    bias: None,
                    shape: (1, columns),
                    interleaved: None,
                    activations,
                };
                let expected = match activations.grouping(ty, columns) {
                    Grouping::Float | Grouping::F16 | Grouping::Bf16 => Rounding::None,
                    Grouping::Q8_0 => Rounding::Q8_0,
                    Grouping::K(group) => Rounding::K(group),
                };
                assert_eq!(rows.rounding(), expected, "{ty} {columns} {activations}");
            }
        }
    }
}
