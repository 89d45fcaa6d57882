//! The types of a file, chosen by what they do to the output: the smallest file whose mean KLD on a text is within a
//! budget.
//!
//! ```text
//! reference   every linear in F32, activations as they are; embedding and head as they will be stored, a quantized head
//!             with its rounded activations
//! parts       the same with one linear in one type: its weights and its activations rounded            `parts`
//! ladder      every linear in its smallest type, then step by step up, most KLD for a byte first        `ladder`
//! whole       a file of so many steps on all of the text: the fewest steps that are within the budget   `whole`
//! trim        what of these steps was of no use in the whole is taken back                              `ladder/trim`
//! ```
//! Parts are measured on some of the tokens, and only rank the steps; what is promised is what was measured of the whole.
//! Passes are the same on every instruction set and number of threads, and sums have one order: the same request
//! chooses the same types.

mod backend;
mod error;
mod ladder;
mod model;
mod parts;
mod passes;
mod whole;
mod work;

use std::ops::ControlFlow;

use formats::block::BlockType;
use formats::gguf::Value;

pub use backend::Backend;
pub use error::ChooseError;

use self::ladder::Ladder;
use self::model::Model;
use self::whole::Whole;
use crate::engine::text::{TextOptions, Windows};
use crate::kernels::Isa;
use crate::pack::{Plan, Target};

/// Told what is being done, and where it is known, which share (0 to 1) of it is behind; says whether to go on.
pub type Progress<'a> = dyn Fn(&str, f64) -> ControlFlow<()> + Sync + 'a;

/// The most tokens of a text that are measured.
pub const MOST_TOKENS: usize = 1024;
/// The mean over fewer tokens tells nothing.
const LEAST_TOKENS: usize = 64;

/// What to choose by.
pub struct Request {
    /// The mean KLD from the reference that the file may have, in nats a token.
    pub max_kld: f64,
    /// The text that it is measured on.
    pub text: TextOptions,
    /// Where the file is to run.
    pub target: Target,
    /// The instructions to measure with: the result is the same with any.
    pub isa: Isa,
}

/// What was chosen, and why.
#[derive(Debug)]
pub struct Chosen {
    /// Tokens that the whole file was measured on.
    pub tokens: usize,
    /// Tokens that each linear was measured on alone; 0 where none had a choice.
    pub tokens_of_parts: usize,
    /// All linears that had a choice, in the order of the file.
    pub linears: Vec<Linear>,
    /// The mean KLD of the file, in nats a token, as each backend rounds activations.
    pub kld: Vec<(Backend, f64)>,
    /// What its linears cost alone, added up.
    pub sum: f64,
    /// How many whole files were measured.
    pub measured: usize,
}

/// A linear, and the types that were tried for it.
#[derive(Debug)]
pub struct Linear {
    /// Of its weights in the file.
    pub name: String,
    /// The type that it takes.
    pub ty: BlockType,
    /// Smallest first.
    pub tried: Vec<Tried>,
}

/// What a type does to one linear.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tried {
    pub ty: BlockType,
    /// Bytes of all its rows.
    pub bytes: u64,
    /// KLD in nats a token where all other linears are as in the reference. None where it was not measured: for floats,
    /// whose activations are not rounded to 8 bits, and where there is no other type to choose.
    pub kld: Option<f64>,
}

/// Choose the types of `plan`'s linears, and give them to it. `keys`: those of the tokenizer, for a checkpoint.
///
/// # Errors
/// A model that our engine does not run, or whose tokenizer we cannot run; a text that is too short; too little memory;
/// a budget that is below what the best types reach; whatever keeps the weights from being read.
pub fn choose(
    plan: &mut Plan,
    keys: &[(String, Value)],
    request: &Request,
    progress: &Progress,
) -> Result<Chosen, ChooseError> {
    let keys = plan.keys(keys.to_vec())?;
    let choices = plan.choices()?;
    let model = Model::new(plan, &keys, &choices, request.isa)?;
    let text = Windows::cut(&keys, model.hyper.context, &request.text)?;
    let tokens = text.predictions();
    if tokens < LEAST_TOKENS {
        let least = LEAST_TOKENS;
        return Err(ChooseError::TooShort { found: tokens, least });
    }
    let backends = Backend::of(request.target);
    let parts = parts::measure(&model, &text, backends[0], progress)?;
    let ladder = Ladder::new(&parts.tried);
    let mut whole = Whole::new(&model, &text, backends, progress)?;
    let (max_kld, types) = (request.max_kld, |taken: &[usize]| types(&parts.tried, taken));
    let mut measure = |taken: &[usize]| whole.kld(&types(taken), max_kld);
    let found = ladder.lowest(max_kld, &mut measure)?;
    if !found.is_within(max_kld) {
        return Err(ChooseError::Budget {
            max_kld,
            best: found.worst(),
            tokens,
            text: request.text.source.clone(),
        });
    }
    let found = ladder.trim(found, max_kld, &mut measure)?;
    drop(whole);
    let (types, sum) = (types(&found.taken), ladder.sum(&found.taken));
    let linears = choices.into_iter().zip(parts.tried).zip(&types);
    let linears = linears.map(|((choice, tried), &ty)| Linear {
        name: choice.name,
        ty,
        tried,
    });
    let chosen = Chosen {
        tokens,
        tokens_of_parts: parts.tokens,
        linears: linears.collect(),
        kld: backends.iter().copied().zip(found.kld).collect(),
        sum,
        measured: found.measured,
    };
    plan.choose(&types);
    Ok(chosen)
}

fn types(tried: &[Vec<Tried>], taken: &[usize]) -> Vec<BlockType> {
    tried.iter().zip(taken).map(|(tried, &taken)| tried[taken].ty).collect()
}
