//! What can be asked of llama.cpp.

use std::path::Path;
use std::time::Duration;

use bytemuck::Pod;
use formats::block::BlockType;
use formats::gguf::File;
use serde::de::DeserializeOwned;

use super::error::WitnessError;
use super::process::Process;
use super::protocol::{Build, Hello, Piece, Products, Settings, Work};
use super::size::{LONGEST_RUN, ModelSize, Size, longest_run};
use super::{Program, size};

/// A running child.
pub struct Witness {
    process: Process,
    hello: Hello,
    patience: Duration,
    /// Bytes of memory that what it holds explains.
    held: u64,
    model: ModelSize,
    /// What is prepared.
    products: Option<Products>,
}

impl Witness {
    /// Start the child.
    ///
    /// # Errors
    /// There is none, it cannot be started, or the user's library cannot be used.
    pub fn start(program: &Program) -> Result<Self, WitnessError> {
        if !program.has_llama() {
            return Err(WitnessError::NotBuiltIn);
        }
        let cost = Size::default().cost(0, program.patience);
        let started: Result<(_, Hello), _> = Process::start(program, cost);
        let (process, hello) = started.map_err(|error| error.of_library(program.library.as_deref()))?;
        let _ = program.build.set(hello.build.clone());
        Ok(Self {
            process,
            hello,
            patience: program.patience,
            held: 0,
            model: ModelSize::default(),
            products: None,
        })
    }

    /// The llama.cpp that answers.
    pub fn build(&self) -> &Build {
        &self.hello.build
    }

    /// The CPU features that ggml was compiled with and found: `CPU : AVX2 = 1 | F16C = 1 | ...`.
    pub fn system(&self) -> &str {
        &self.hello.system
    }

    /// How many tensors and keys ggml's own reader finds in the file at `path`, whose header has so many bytes.
    ///
    /// # Errors
    /// What ggml says when it refuses the file, and whatever else keeps it from answering.
    pub fn read_gguf(&mut self, path: &Path, header: u64) -> Result<(usize, usize), WitnessError> {
        self.ask(Work::ReadGguf { path: path.into() }, &[], Size::header(header))
    }

    /// Hold the blocks of these tensors of the file at `path` against ggml's own rules (a scale that is NaN or infinite,
    /// ...): what llama.cpp does with `--check-tensors`. Whether each keeps to them.
    ///
    /// # Errors
    /// What keeps it from answering.
    pub fn check_blocks(&mut self, path: &Path, pieces: Vec<Piece>) -> Result<Vec<bool>, WitnessError> {
        let size = Size::bytes(pieces.iter().map(|piece| piece.length).sum());
        let path = path.into();
        self.ask(Work::CheckBlocks { path, pieces }, &[], size)
    }

    /// One product of ggml: `y_t = W x_t`, by the kernels that llama.cpp uses on the CPU for tensors that it has not
    /// repacked, activations rounded as they round them.
    ///
    /// `matrix`: (rows, columns).  `x`: (tokens, columns).  Returns (tokens, rows).
    ///
    /// # Errors
    /// A type that ggml cannot multiply, lengths that do not fit, and whatever else keeps it from answering.
    pub fn multiply(&mut self, matrix: Matrix, x: &[f32], threads: usize) -> Result<Vec<f32>, WitnessError> {
        let (products, bulk) = matrix.products(x, (1, 1), threads);
        let size = Size::products(&products, matrix.weights.length());
        let (_, y) = self.ask_for::<(), f32>(Work::Multiply(products), &bulk, size)?;
        Ok(y)
    }

    /// Make `graphs` times `batch` products as [`multiply`](Self::multiply) does, each with its own copy of the weights,
    /// for [`time_products`](Self::time_products).
    ///
    /// # Errors
    /// Those of [`multiply`](Self::multiply).
    pub fn prepare_products(
        &mut self,
        matrix: &Matrix,
        x: &[f32],
        (graphs, batch): (usize, usize),
        threads: usize,
    ) -> Result<(), WitnessError> {
        let (products, bulk) = matrix.products(x, (graphs, batch), threads);
        let size = Size::products(&products, matrix.weights.length());
        self.held = size.memory;
        self.products = Some(products.clone());
        self.ask(Work::Prepare(products), &bulk, size)
    }

    /// Compute the products of one graph so often; the seconds that it took, threads being awake. They rest afterwards.
    ///
    /// # Errors
    /// What keeps it from answering.
    ///
    /// # Panics
    /// Where nothing is prepared.
    pub fn time_products(&mut self, graph: usize, repeats: usize) -> Result<f64, WitnessError> {
        let products = self.products.as_ref().expect("products are prepared before");
        let size = Size {
            macs: Size::products(products, 0).macs * repeats as u64,
            ..Size::default()
        };
        let ty = products.ty;
        self.ask(Work::Compute { ty, graph, repeats }, &[], size)
    }

    /// Load the model at `path`.
    ///
    /// # Errors
    /// What llama.cpp refuses, and whatever else keeps it from answering.
    pub fn load(&mut self, path: &Path, model: ModelSize) -> Result<(), WitnessError> {
        self.model = model;
        self.held += model.memory();
        let size = Size::bytes(3 * model.file);
        self.ask(Work::Load { path: path.into() }, &[], size)
    }

    /// Make a context of the model; its number.
    ///
    /// # Errors
    /// A context that llama.cpp cannot make, and whatever else keeps it from answering.
    pub fn session(&mut self, settings: Settings) -> Result<usize, WitnessError> {
        let memory = self.model.context_memory(&settings);
        self.held += memory;
        let size = Size::bytes(memory);
        self.ask(Work::Session { settings }, &[], size)
    }

    /// Logits (tokens, vocab) of all `tokens`, from an empty context.
    ///
    /// # Errors
    /// What keeps it from answering.
    pub fn logits(&mut self, session: usize, tokens: &[u32]) -> Result<Vec<f32>, WitnessError> {
        let size = self.model.run(tokens.len(), 0);
        let work = Work::Logits { session };
        let (_, logits) = self.ask_for::<(), f32>(work, &[bytemuck::cast_slice(tokens)], size)?;
        Ok(logits)
    }

    /// Append `tokens` to the `used` ones of the context, which is emptied where there are none; the logits (vocab,) of the
    /// last.
    ///
    /// # Errors
    /// What keeps it from answering.
    pub fn feed(&mut self, session: usize, tokens: &[u32], used: usize) -> Result<Vec<f32>, WitnessError> {
        let size = self.model.run(tokens.len(), used);
        let work = Work::Feed { session, used };
        let (_, logits) = self.ask_for::<(), f32>(work, &[bytemuck::cast_slice(tokens)], size)?;
        Ok(logits)
    }

    /// Seconds of a prefill from an empty context, and of decoding token by token after it, as the child measures them.
    ///
    /// # Errors
    /// What keeps it from answering.
    pub fn time(
        &mut self,
        session: usize,
        prefill: &[u32],
        decode: &[u32],
    ) -> Result<(Duration, Duration), WitnessError> {
        let size = self.model.run(prefill.len() + decode.len(), 0);
        let bulk = [prefill, decode].map(bytemuck::cast_slice);
        let prefill = prefill.len();
        let work = Work::Time { session, prefill };
        self.ask(work, &bulk, size)
    }

    /// Drop the context.
    ///
    /// # Errors
    /// What keeps it from answering.
    pub fn close(&mut self, session: usize) -> Result<(), WitnessError> {
        self.ask(Work::Close { session }, &[], Size::default())
    }

    /// Token ids of `text`, by llama.cpp's own tokenizer. `add_special` puts the tokens around it that the file asks
    /// for (as a rule the one that begins a text); `parse_special` takes the spelling of a control token for the token.
    ///
    /// # Errors
    /// A text with more than [`LONGEST_RUN`] characters in a row, and whatever else keeps it from answering.
    pub fn tokenize(&mut self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>, WitnessError> {
        let length = longest_run(text);
        if length > LONGEST_RUN {
            return Err(WitnessError::LongRun { length });
        }
        let stack = size::stack(length);
        let size = Size::text(text.len(), stack);
        let work = Work::Tokenize {
            add_special,
            parse_special,
            stack,
        };
        let (_, tokens) = self.ask_for::<(), u32>(work, &[text.as_bytes()], size)?;
        Ok(tokens)
    }

    /// The bytes of `tokens`, all of which the vocabulary has; a character may be spread over several. Control tokens
    /// have none.
    ///
    /// # Errors
    /// What keeps it from answering.
    pub fn detokenize(&mut self, tokens: &[u32]) -> Result<Vec<u8>, WitnessError> {
        let size = Size::text(4 * tokens.len(), 0);
        let bulk = [bytemuck::cast_slice(tokens)];
        let (_, bytes) = self.ask_for::<(), u8>(Work::Detokenize, &bulk, size)?;
        Ok(bytes)
    }

    /// Whether `token`, which the vocabulary has, ends a text.
    ///
    /// # Errors
    /// What keeps it from answering.
    pub fn is_end(&mut self, token: u32) -> Result<bool, WitnessError> {
        self.ask(Work::IsEnd { token }, &[], Size::default())
    }

    fn ask<T: DeserializeOwned>(&mut self, work: Work, bulk: &[&[u8]], size: Size) -> Result<T, WitnessError> {
        let (answer, _) = self.ask_for::<T, u8>(work, bulk, size)?;
        Ok(answer)
    }

    fn ask_for<T: DeserializeOwned, B: Pod>(
        &mut self,
        work: Work,
        bulk: &[&[u8]],
        size: Size,
    ) -> Result<(T, Vec<B>), WitnessError> {
        self.process.ask(work, bulk, size.cost(self.held, self.patience))
    }
}

/// A matrix for ggml.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// Type of the blocks.
    pub ty: BlockType,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// The blocks.
    pub weights: Weights<'a>,
}

/// Where weights are.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// In a file, which the child maps.
    File(&'a Path, Piece),
    /// In memory; they are sent.
    Bytes(&'a [u8]),
}

impl Weights<'_> {
    fn length(&self) -> u64 {
        match self {
            Weights::File(_, piece) => piece.length,
            Weights::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

impl<'a> Matrix<'a> {
    /// The order for products with `x`, and what is to be sent with it.
    fn products(&self, x: &'a [f32], (graphs, batch): (usize, usize), threads: usize) -> (Products, [&'a [u8]; 2]) {
        let (weights, sent): (_, &[u8]) = match self.weights {
            Weights::File(path, piece) => (Some((path.into(), piece)), &[]),
            Weights::Bytes(bytes) => (None, bytes),
        };
        let products = Products {
            ty: self.ty.id(),
            rows: self.rows,
            columns: self.columns,
            tokens: x.len() / self.columns.max(1),
            graphs,
            batch,
            threads,
            weights,
        };
        (products, [bytemuck::cast_slice(x), sent])
    }
}

/// Where the blocks of each tensor are in their file, in the order of [`File::tensors`].
pub fn pieces(file: &File) -> Vec<Piece> {
    let mut end = file.data_start();
    let tensors = file.tensors().iter();
    let pieces = tensors.map(|info| {
        let start = end.next_multiple_of(file.alignment());
        let length = info.bytes().unwrap_or(0);
        end = start + length;
        let ty = info.ty.id();
        Piece { ty, start, length }
    });
    pieces.collect()
}
