//! The tensors that a GGUF file gives, in its order: matrices whose data is ternary or of four levels become jobs, all others are copied.

use formats::gguf::TensorInfo;
use rayon::prelude::*;

use super::super::PackError;
use super::super::metadata::earlier_loss;
use super::super::rounded::{Data, Rounded, look_at};
use super::super::row::Ternary;
use super::super::rule::Embedding;
use super::{Content, Job, Plan};
use crate::model::{Blocks, Gguf};

/// Tensors whose rows are looked up by tokens, or that give the logits: they stay what they are, unless asked for.
const TABLES: [&str; 2] = ["token_embd.weight", "output.weight"];

impl<'a> Plan<'a> {
    /// Plan all tensors; gives the matrices that no block type fits, and their columns.
    pub(super) fn add_gguf(&mut self, gguf: &'a Gguf) -> Result<Vec<(String, usize)>, PackError> {
        check_not_rotated(gguf)?;
        let tensors: Vec<_> = gguf.tensors().collect();
        let look = |&(info, blocks): &(&TensorInfo, Blocks)| match self.may_be_packed(info) {
            true => look_at(blocks)
                .map(Some)
                .map_err(|source| PackError::read(blocks.path, source)),
            false => Ok(None),
        };
        let found = tensors.par_iter().map(look).collect::<Result<Vec<_>, _>>()?;
        let (mut no_block, was_lossy) = (vec![], earlier_loss(gguf.metadata()) > 0.0);
        for (&(info, blocks), found) in tensors.iter().zip(&found) {
            match found {
                Some(Data::Rounded { levels, run }) => {
                    let source = Rounded {
                        name: info.name.clone(),
                        blocks,
                        levels: *levels,
                        run: *run,
                        level: self.options.level,
                    };
                    self.add_matrix(info, source, was_lossy, &mut no_block)?;
                }
                _ => self.add_copy(info, blocks)?,
            }
        }
        if self.jobs.is_empty() && no_block.is_empty() {
            return Err(no_ternary(gguf, &found));
        }
        Ok(no_block)
    }

    /// Whether a tensor is packed if its data is ternary.
    fn may_be_packed(&self, info: &TensorInfo) -> bool {
        let is_matrix = info.shape.len() > 1 && info.weights() > 0;
        let asked = |(text, _): &(String, _)| info.name.contains(text);
        let stays = TABLES.contains(&&*info.name)
            // No engine would read what stays in a type of the fork.
            && (!info.ty.is_prism() || self.options.embedding != Embedding::Keep)
            && !self.options.rule.tensor_types.iter().any(asked);
        is_matrix && !stays
    }

    fn add_matrix(
        &mut self,
        info: &TensorInfo,
        source: Rounded<'a>,
        was_lossy: bool,
        no_block: &mut Vec<(String, usize)>,
    ) -> Result<(), PackError> {
        let (name, blocks) = (info.name.clone(), source.blocks);
        let asked = self.options.rule.candidates(&name);
        let holding: Vec<_> = asked.iter().copied().filter(|ty| source.levels.fit(*ty)).collect();
        if holding.is_empty() {
            return Err(PackError::FourLevel {
                path: blocks.path.into(),
                tensor: name,
                types: asked,
            });
        }
        let (types, larger) = self.types(holding, blocks.columns());
        if types.is_empty() {
            no_block.push((name, blocks.columns()));
            return Ok(());
        }
        let own = types.iter().position(|ty| *ty == blocks.ty);
        self.push(name.clone(), info.shape.clone(), Content::Linear(self.jobs.len()));
        self.jobs.push(Job {
            ternary: Ternary::alone(name.clone(), blocks.columns(), source, self.options.level),
            name,
            is_table: false,
            shape: (blocks.rows(), blocks.columns()),
            interleaved: None,
            types,
            exact: own.filter(|_| was_lossy).unwrap_or(0),
            chosen: 0,
            promising: true,
            is_chosen: false,
            drops_biases: false,
            larger,
        });
        Ok(())
    }

    fn add_copy(&mut self, info: &TensorInfo, blocks: Blocks<'a>) -> Result<(), PackError> {
        let content = match TABLES.contains(&&*info.name) {
            true => self.embedding(&info.name, info.name.clone(), blocks)?,
            false => self.table(&info.name, info.name.clone(), blocks, blocks.ty)?,
        };
        if let Content::Table { ty, .. } = content
            && ty.is_prism()
        {
            return Err(PackError::Unreadable {
                path: blocks.path.into(),
                tensor: info.name.clone(),
                ty,
            });
        }
        self.push(info.name.clone(), info.shape.clone(), content);
        Ok(())
    }
}

/// Weights of a rotated basis look ternary, and mean nothing to an engine that does not rotate activations.
fn check_not_rotated(gguf: &Gguf) -> Result<(), PackError> {
    let says_so = |name: &str| {
        let name = name.to_ascii_lowercase();
        ["hadamard", "rotation", "signs"].iter().any(|word| name.contains(word))
    };
    let keys = gguf.metadata().iter().map(|(key, _)| key.as_str());
    // Of keys only those that say how weights are stored.
    let keys = keys.filter(|key| key.starts_with("prism.") && says_so(key));
    let tensors = gguf.tensors().map(|(info, _)| info.name.as_str());
    match keys.chain(tensors.filter(|name| says_so(name))).next() {
        None => Ok(()),
        Some(name) => Err(PackError::Rotated {
            path: first_path(gguf),
            name: name.into(),
        }),
    }
}

fn no_ternary(gguf: &Gguf, found: &[Option<Data>]) -> PackError {
    let matrices = found.iter().flatten().count();
    let nearly = found.iter().filter(|data| **data == Some(Data::NearlyTernary)).count();
    let (problem, remedy) = match nearly {
        0 => (
            String::new(),
            "pack the checkpoint that was trained (`tqconv pack FOLDER OUT.gguf`), or use the file as it is",
        ),
        count => (
            format!(", {count} are close to it: something was added to them, or they were rounded once more"),
            "take the file before that",
        ),
    };
    PackError::NoTernary {
        path: first_path(gguf),
        matrices,
        problem,
        remedy,
    }
}

fn first_path(gguf: &Gguf) -> std::path::PathBuf {
    gguf.files().next().map(|(path, _)| path.into()).unwrap_or_default()
}
