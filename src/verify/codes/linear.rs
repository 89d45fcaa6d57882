//! One linear of the file against the checkpoint.

use formats::gguf::{File, TensorInfo};
use rayon::prelude::*;

use super::super::VerifyError;
use super::super::latent::{Latent, row_order};
use super::super::report::{LinearFacts, SHOWN, Tally};
use super::Places;
use super::biases;
use super::diagnosis::diagnose;
use super::histogram::Octaves;
use super::row::{Buffers, RowFound, Stored};
use crate::blueprint::Linear;
use crate::model::Checkpoint;

/// One linear compared.
pub(super) struct Compared {
    pub facts: LinearFacts,
    pub places: Places,
    /// The bias of each row of the file, as the checkpoint gives it: (rows,).
    pub biases: Vec<f32>,
    /// The trained scales.
    pub octaves: Octaves,
}

/// One code in this many wrong is no accident: something stands in another place.
const SUSPICIOUS: u64 = 100;

/// Compare a linear, row by row.
pub(super) fn compare(file: &File, checkpoint: &Checkpoint, linear: Linear) -> Result<Compared, VerifyError> {
    let latent = Latent::new(checkpoint, linear)?;
    let order = row_order(linear, &checkpoint.config);
    let name = format!("{}.weight", linear.gguf_name());
    let tensor = file.tensor(&name).filter(|(info, _)| has_shape(info, &latent));
    let importance = importance(checkpoint, linear);
    let stored = tensor.map(|(info, bytes)| Stored::new(info, bytes, &latent, &importance));

    let rows: Vec<RowFound> = order
        .par_iter()
        .enumerate()
        .map_init(Buffers::default, |buffers, (row, &from)| {
            latent.read(from, &mut buffers.latent)?;
            let found = match &stored {
                Some(stored) => stored.compare(row, from, buffers),
                None => RowFound::missing(&latent, from, &buffers.latent),
            };
            Ok(found.with_row(&buffers.latent))
        })
        .collect::<Result<_, VerifyError>>()?;

    let mut compared = Compared::new(linear, &latent, stored.as_ref(), rows);
    match &stored {
        None => compared.places.codes = vec![format!("tensor '{name}' is missing or of another shape")],
        Some(stored) if compared.facts.tally.codes_wrong > compared.facts.tally.weights / SUSPICIOUS => {
            let codes = &mut compared.places.codes;
            codes.truncate(1);
            codes.extend(diagnose(checkpoint, linear, stored));
        }
        Some(_) => {}
    }
    let tally = &mut compared.facts.tally;
    tally.ties = latent.ties();
    compared.places.biases = biases::compare(file, linear, &order, &compared.biases, tally);
    Ok(compared)
}

fn has_shape(info: &TensorInfo, latent: &Latent) -> bool {
    info.columns() == latent.columns as u64 && info.rows() == latent.rows as u64
}

/// How much each column counts in a least-squares fit: the square of the preceding norm's weight, 1 where there is none.
fn importance(checkpoint: &Checkpoint, linear: Linear) -> Vec<f64> {
    let config = &checkpoint.config;
    let (_, columns) = linear.shape(&config.dims);
    let mut norm = vec![1f32; columns];
    let preceding = config.architecture.graph.preceding_norm(linear);
    let name = preceding.map(|norm| config.architecture.norm_name(norm));
    if let Some(tensor) = name.and_then(|name| checkpoint.tensors.get(&name)) {
        tensor.read_f32(0, &mut norm);
    }
    norm.into_iter().map(|w| f64::from(w) * f64::from(w)).collect()
}

impl Compared {
    fn new(linear: Linear, latent: &Latent, stored: Option<&Stored>, rows: Vec<RowFound>) -> Self {
        let name = linear.gguf_name();
        let mut tally = Tally::default();
        let mut places = Places::default();
        let mut biases = Vec::with_capacity(rows.len());
        for row in rows {
            tally += row.tally;
            places += row.places;
            biases.push(row.bias as f32);
        }
        for places in [&mut places.codes, &mut places.scales, &mut places.merged] {
            places.truncate(SHOWN + 1);
        }
        let mut octaves = Octaves::default();
        latent.scales.iter().for_each(|&scale| octaves.count(scale));
        Self {
            facts: LinearFacts {
                layer: linear.layer,
                part: name.rsplit('.').next().unwrap_or_default().into(),
                name,
                ty: stored.map_or(String::new(), |stored| stored.info.ty.to_string()),
                tally,
                dots: None,
            },
            places,
            biases,
            octaves,
        }
    }
}
