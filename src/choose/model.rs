//! The file that a plan would write, for the engine, without writing it: tensors are encoded when they are asked for.

use std::collections::HashMap;

use formats::block::BlockType;
use formats::gguf::{TensorInfo, Value};

use super::ChooseError;
use super::backend::Backend;
use crate::blueprint::{Linear, Slot};
use crate::engine::EngineError;
use crate::engine::hyper::Hyper;
use crate::engine::native::{Ends, Layer, Source, Tensor, Tensors};
use crate::kernels::{Isa, Matrix};
use crate::pack::{Choice, Plan};

/// The file of a plan.
pub struct Model<'p, 'a> {
    plan: &'p Plan<'a>,
    /// The linears whose types are chosen.
    pub choices: &'p [Choice],
    tensors: Vec<TensorInfo>,
    /// Where a tensor is in `tensors`.
    places: HashMap<String, usize>,
    /// Which of `choices` a tensor is.
    chosen: HashMap<String, usize>,
    pub hyper: Hyper,
    pub ends: Ends<'static>,
    pub isa: Isa,
}

/// The types of the linears.
#[derive(Clone, Copy)]
pub enum Types<'t> {
    /// One for all.
    All(BlockType),
    /// One for each of [`Model::choices`].
    Each(&'t [BlockType]),
}

impl<'p, 'a> Model<'p, 'a> {
    /// `keys`: those of the file.
    ///
    /// # Errors
    /// A model that our engine does not run; weights that cannot be read; no memory.
    pub fn new(
        plan: &'p Plan<'a>,
        keys: &[(String, Value)],
        choices: &'p [Choice],
        isa: Isa,
    ) -> Result<Self, ChooseError> {
        let tensors = plan.tensors();
        let index = |(index, name): (usize, &String)| (name.clone(), index);
        let places: HashMap<_, _> = tensors.iter().map(|info| &info.name).enumerate().map(index).collect();
        let chosen = choices
            .iter()
            .map(|choice| &choice.name)
            .enumerate()
            .map(index)
            .collect();
        let factors = places.get(&Slot::RopeFactors.gguf_name());
        let factors = factors.map(|&place| plan.encoded(place, BlockType::F32)).transpose()?;
        let hyper = Hyper::of(keys, &tensors, factors.as_deref())?;
        let as_planned = AsPlanned {
            plan,
            tensors: &tensors,
            places: &places,
            ty: &|_| None,
        };
        let ends = Ends::load(&Tensors::new(&as_planned, Backend::Cpu.options(isa)), &hyper)?;
        Ok(Self {
            plan,
            choices,
            ends,
            tensors,
            places,
            chosen,
            hyper,
            isa,
        })
    }

    /// Layer `index`, with linears of these types.
    ///
    /// # Errors
    /// Weights that cannot be read; no memory.
    pub fn layer(&self, index: usize, types: Types, backend: Backend) -> Result<Layer, ChooseError> {
        let ty = |name: &str| {
            let choice = self.chosen.get(name)?;
            Some(match types {
                Types::All(ty) => ty,
                Types::Each(types) => types[*choice],
            })
        };
        let source = AsPlanned {
            plan: self.plan,
            tensors: &self.tensors,
            places: &self.places,
            ty: &ty,
        };
        Ok(Layer::load(&Tensors::new(&source, backend.options(self.isa)), index)?)
    }

    /// The weights of a choice as `ty`.
    ///
    /// # Errors
    /// Weights that cannot be read; no memory.
    pub fn matrix(&self, choice: usize, ty: BlockType, backend: Backend) -> Result<Matrix, ChooseError> {
        let Choice { name, shape, .. } = &self.choices[choice];
        let bytes = self.plan.encoded(self.places[name], ty)?;
        let matrix = Matrix::new(ty, shape.0, shape.1, &bytes, &backend.options(self.isa));
        matrix.map_err(|source| ChooseError::kernel(name, source))
    }

    /// Which of the choices a linear is, if it is one.
    pub fn choice(&self, linear: Linear) -> Option<usize> {
        self.chosen.get(&Slot::Linear(linear).gguf_name()).copied()
    }
}

/// The tensors of a plan.
struct AsPlanned<'m, 'a> {
    plan: &'m Plan<'a>,
    tensors: &'m [TensorInfo],
    places: &'m HashMap<String, usize>,
    /// The type of a tensor, where it is not the plan's.
    ty: &'m (dyn Fn(&str) -> Option<BlockType> + Sync),
}

impl Source<'static> for AsPlanned<'_, '_> {
    fn tensor(&self, name: &str) -> Result<Option<Tensor<'static>>, EngineError> {
        let Some(&place) = self.places.get(name) else {
            return Ok(None);
        };
        let info = &self.tensors[place];
        let ty = (self.ty)(name).unwrap_or(info.ty);
        let encoded = self.plan.encoded(place, ty);
        let bytes = encoded.map_err(|error| EngineError::Weights(Box::new(error)))?;
        Ok(Some(Tensor {
            ty,
            rows: info.rows() as usize,
            columns: info.columns() as usize,
            bytes: bytes.into(),
        }))
    }
}
