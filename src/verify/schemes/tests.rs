//! The witness on the fixtures of families that are ternary already: every code and scale is the golden one.

use std::path::Path;

use formats::safetensors;

use crate::blueprint::Linear;
use crate::model::{Checkpoint, Source, TrainingOverrides};
use crate::verify::latent::{Latent, LatentRow};

#[test]
fn codes_and_scales_of_stored_families_are_golden() {
    for family in ["ternary-float", "bitnet-packed", "bonsai"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures/families")
            .join(family);
        let source = Source::find(&folder, None, None).unwrap();
        let checkpoint = Checkpoint::open(source, &TrainingOverrides::default()).unwrap();
        let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
        let entries = safetensors::parse(&bytes).unwrap();
        let golden = |name: &str| entries.iter().find(|entry| entry.name == name).unwrap().view(&bytes);
        for linear in checkpoint.config.linears() {
            let name = linear.checkpoint_name();
            let scales = golden(&format!("{name}.scale"));
            let mut expected = vec![0.0; scales.len()];
            scales.read_f32(0, &mut expected);
            compare(&checkpoint, linear, golden(&format!("{name}.codes")).bytes, &expected);
        }
    }
}

/// `scales`: of equal runs of the flattened matrix. Zeros have none.
fn compare(checkpoint: &Checkpoint, linear: Linear, codes: &[u8], scales: &[f32]) {
    let latent = Latent::new(checkpoint, linear).unwrap();
    let (columns, run) = (latent.columns, codes.len() / scales.len());
    let mut row = LatentRow::default();
    for index in 0..latent.rows {
        latent.read(index, &mut row).unwrap();
        assert_eq!(row.bias, 0.0);
        for (column, &code) in row.codes.iter().enumerate() {
            let (at, place) = (
                index * columns + column,
                format!("{linear:?} row {index} column {column}"),
            );
            assert_eq!(code, codes[at] as i8, "{place}");
            let scale = latent.scales[at / latent.group_size];
            assert!(code == 0 || scale == scales[at / run], "{place}: {scale}");
        }
    }
}
