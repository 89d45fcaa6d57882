use super::*;

struct Held<'a>(&'a [f32], usize);

impl Rows for Held<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.0.len() / self.1, self.1)
    }

    fn read(&self, rows: Range<usize>, weights: &mut [f32], bias: &mut [f64]) -> Result<(), EngineError> {
        weights.copy_from_slice(&self.0[rows.start * self.1..rows.end * self.1]);
        bias.fill(0.0);
        Ok(())
    }
}

fn turned(latent: &[f32], stored: &[f32], columns: usize, max_nmse: f64) -> Vec<f32> {
    let rows = TurnedRows {
        latent: Box::new(Held(latent, columns)),
        stored: Box::new(Held(stored, columns)),
        max_nmse,
        ternary: true,
    };
    let count = rows.shape().0;
    let mut weights = vec![0.0; latent.len()];
    rows.read(0..count, &mut weights, &mut vec![0.0; count]).unwrap();
    weights
}

#[test]
fn losses_are_turned_round_row_by_row() {
    let latent = [1.0, 0.0, -1.0, 1.0].repeat(64);
    let stored: Vec<f32> = latent.iter().map(|w| w * 1.25).collect();
    let found = turned(&latent, &stored, 4, 1.0);
    let mut kinds = [0, 0];
    for row in found.chunks(4) {
        assert!(row == [0.75, 0.0, -0.75, 0.75] || row == [1.25, 0.0, -1.25, 1.25]);
        kinds[usize::from(row[0] > 1.0)] += 1;
    }
    assert!(kinds.iter().all(|&kind| kind > 16), "{kinds:?}");
}

#[test]
fn more_than_is_allowed_is_no_excuse() {
    let latent = [1.0, 0.0, -1.0, 1.0].repeat(64);
    // The NMSE is 4; 0.01 is allowed, which is a tenth of the weight.
    let stored: Vec<f32> = latent.iter().map(|w| w * 3.0).collect();
    for row in turned(&latent, &stored, 4, 0.01).chunks(4) {
        assert!((row[0] - 1.0).abs() - 0.1 < 1e-6 && row[1] == 0.0);
    }
    // Another code is none at all.
    let stored: Vec<f32> = latent.iter().map(|w| -w).collect();
    assert_eq!(turned(&latent, &stored, 4, 9.0), latent);
    let stored: Vec<f32> = latent.iter().map(|w| w + 0.1).collect();
    assert_eq!(turned(&latent, &stored, 4, 9.0), latent);
    // What is too small for the type is a loss.
    assert_ne!(turned(&latent, &[0.0; 256], 4, 9.0), latent);
}
