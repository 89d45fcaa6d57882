//! A Llama's forward pass straight from a GGUF: packed weights on our kernels, everything else in f32.
//!
//! ```text
//! x = embedding[token]
//! for each layer:   q, k, v = linears(norm(x));  turn q and k by their positions;  x += o(attention(q, k, v))
//!                   gate, up = linears(norm(x));                                   x += down(silu(gate) * up)
//! logits = head(norm(x))
//! ```
//! Tokens go through in batches, so that the weights are read once for up to 512 of them.

mod attention;
mod math;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use formats::block::BlockType;
use formats::gguf::File;
use rayon::prelude::*;

use self::attention::{Cache, Rotation};
use super::shape::Shape;
use super::{Engine, EngineError, EngineName, Generate, check_tokens, threads_text};
use crate::kernels::{self, Activations, Grouping, Matrix, Threads};
use crate::simd::Level;

/// Most tokens that go through the layers together.
const BATCH: usize = 512;

/// How the engine computes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How many tokens the context holds.
    pub context: usize,
    /// Threads to compute with; 0 means one for each core.
    pub threads: usize,
    /// Instructions and rounding of activations.
    pub kernels: kernels::Options,
}

impl Settings {
    /// The best instructions that the CPU has, and activations rounded as llama.cpp rounds them.
    pub fn new(context: usize, threads: usize) -> Self {
        Settings {
            context,
            threads,
            kernels: kernels::Options::default(),
        }
    }
}

/// The engine. It borrows the file for the embedding, of which it reads single rows.
pub struct Native<'file> {
    shape: Shape,
    settings: Settings,
    threads: Threads,
    level: Level,
    embedding: Embedding<'file>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Matrix,
    rotation: Rotation,
    cache: Cache,
    /// Positions in the cache.
    used: usize,
    buffers: Buffers,
    load_time: Duration,
}

struct Embedding<'file> {
    ty: BlockType,
    row_bytes: usize,
    bytes: &'file [u8],
}

struct Layer {
    attention_norm: Vec<f32>,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    ffn_norm: Vec<f32>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

struct Linear {
    matrix: Matrix,
    bias: Option<Vec<f32>>,
}

/// What lives during one batch, (tokens, width) each; kept so that decoding allocates nothing large.
struct Buffers {
    activations: Activations,
    x: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// What the heads have made of the values.
    mixed: Vec<f32>,
    /// First the gate, then silu(gate) * up.
    gate: Vec<f32>,
    up: Vec<f32>,
    out: Vec<f32>,
}

impl<'file> Native<'file> {
    /// Pack the weights of `file` for the kernels.
    ///
    /// # Errors
    /// Those of [`Shape::read`]; a matrix of a type that no kernel multiplies; no memory.
    pub fn load(file: &File<'file>, settings: Settings) -> Result<Self, EngineError> {
        let start = Instant::now();
        let shape = Shape::read(file)?;
        let tensors = Tensors {
            file,
            options: settings.kernels,
        };
        let embedding = Embedding::load(&tensors, &shape)?;
        let head = if file.tensor("output.weight").is_some() {
            "output.weight"
        } else {
            "token_embd.weight"
        };
        // Together, so that no thread waits at the end of each small matrix.
        let (layers, head) = rayon::join(
            || -> Vec<_> {
                let layers = (0..shape.layers).into_par_iter();
                let load = |index| Layer::load(&tensors, index, &shape);
                layers.map(load).collect()
            },
            || tensors.matrix(head),
        );
        let layers = layers.into_iter().collect::<Result<_, _>>()?;
        let factors = tensors.vector("rope_freqs.weight")?;
        Ok(Native {
            embedding,
            layers,
            norm: tensors.norm("output_norm.weight")?,
            head: head?,
            rotation: Rotation::new(&shape, factors.as_deref()),
            cache: Cache::new(&shape, settings.context),
            used: 0,
            buffers: Buffers::new(settings.kernels.isa),
            threads: Threads::new(settings.threads),
            level: Level::widest(),
            shape,
            settings,
            load_time: start.elapsed(),
        })
    }

    /// The model's shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// How long it took to pack the weights.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    /// Bytes of weights that one decoded token reads: all linears and the head.
    pub fn packed_bytes(&self) -> usize {
        let linears = self.layers.iter().flat_map(Layer::linears);
        linears.map(|linear| linear.matrix.packed_bytes()).sum::<usize>() + self.head.packed_bytes()
    }

    /// The kernel of the linears, for reports; all that occur, where layers differ.
    pub fn kernel_name(&self) -> String {
        let mut names = Vec::new();
        for linear in self.layers.iter().flat_map(Layer::linears) {
            let name = linear.matrix.kernel_name();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(" and ")
    }

    /// Run up to `BATCH` tokens through all layers; `buffers.x` is then (wanted, hidden) of the last `wanted` of them,
    /// before the last norm.
    fn run_layers(&mut self, tokens: &[u32], wanted: usize) {
        let Buffers { x, .. } = &mut self.buffers;
        x.resize(tokens.len() * self.shape.hidden, 0.0);
        for (x, &token) in x.chunks_exact_mut(self.shape.hidden).zip(tokens) {
            self.embedding.read(token, x);
        }
        self.rotation.prepare(self.used, tokens.len());
        for index in 0..self.layers.len() {
            self.attention(index);
            if index + 1 == self.layers.len() {
                // Behind its attention nothing sees a token but the token itself.
                let unwanted = (tokens.len() - wanted) * self.shape.hidden;
                self.buffers.x.drain(..unwanted);
            }
            if !self.buffers.x.is_empty() {
                self.feed_forward(index);
            }
        }
        self.used += tokens.len();
    }

    /// `x += o(attention(norm(x)))`
    fn attention(&mut self, index: usize) {
        let Native {
            shape,
            layers,
            threads,
            level,
            buffers: b,
            rotation,
            ..
        } = self;
        let layer = &layers[index];
        let width = shape.heads * shape.head_dim;
        let kv_width = shape.kv_heads * shape.head_dim;
        b.norm(*level, &layer.attention_norm, shape.norm_epsilon, threads);
        multiply(
            &mut b.activations,
            &b.normed,
            [
                (&layer.q.matrix, &mut b.q),
                (&layer.k.matrix, &mut b.k),
                (&layer.v.matrix, &mut b.v),
            ],
            threads,
        );
        for_each_row(threads, &mut b.q, width, |token, q| {
            layer.q.add_bias(q);
            rotation.apply(*level, token, q);
        });
        for_each_row(threads, &mut b.k, kv_width, |token, k| {
            layer.k.add_bias(k);
            rotation.apply(*level, token, k);
        });
        for_each_row(threads, &mut b.v, kv_width, |_, v| layer.v.add_bias(v));
        self.cache.store(index, self.used, &b.k, &b.v, threads);
        b.mixed.resize(b.q.len(), 0.0);
        let at = (index, self.used);
        self.cache.attend(*level, at, &b.q, width, &mut b.mixed, threads);
        multiply(&mut b.activations, &b.mixed, [(&layer.o.matrix, &mut b.out)], threads);
        b.add_out(layer.o.bias.as_deref(), shape.hidden, threads);
    }

    /// `x += down(silu(gate(norm(x))) * up(norm(x)))`
    fn feed_forward(&mut self, index: usize) {
        let Native {
            shape,
            layers,
            threads,
            level,
            buffers: b,
            ..
        } = self;
        let layer = &layers[index];
        b.norm(*level, &layer.ffn_norm, shape.norm_epsilon, threads);
        multiply(
            &mut b.activations,
            &b.normed,
            [(&layer.gate.matrix, &mut b.gate), (&layer.up.matrix, &mut b.up)],
            threads,
        );
        let up = &b.up;
        for_each_row(threads, &mut b.gate, shape.ffn, |token, gate| {
            layer.gate.add_bias(gate);
            let up = &up[token * shape.ffn..][..shape.ffn];
            math::swiglu(*level, gate, up, layer.up.bias.as_deref());
        });
        multiply(&mut b.activations, &b.gate, [(&layer.down.matrix, &mut b.out)], threads);
        b.add_out(layer.down.bias.as_deref(), shape.hidden, threads);
    }

    /// Logits (wanted, vocab) of the tokens in `buffers.x`.
    fn head(&mut self) -> Vec<f32> {
        let Native {
            shape,
            threads,
            level,
            buffers: b,
            ..
        } = self;
        b.norm(*level, &self.norm, shape.norm_epsilon, threads);
        let mut logits = Vec::new();
        multiply(&mut b.activations, &b.normed, [(&self.head, &mut logits)], threads);
        logits
    }
}

impl Engine for Native<'_> {
    fn name(&self) -> EngineName {
        let details = format!("{}, {}", self.kernel_name(), threads_text(self.threads()));
        EngineName::new("native", details)
    }

    fn vocab(&self) -> usize {
        self.shape.vocab
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.reset();
        check_tokens(tokens, self.shape.vocab, 0, self.settings.context)?;
        let mut logits = Vec::with_capacity(tokens.len() * self.shape.vocab);
        for batch in tokens.chunks(BATCH) {
            self.run_layers(batch, batch.len());
            logits.extend(self.head());
        }
        self.reset();
        Ok(logits)
    }
}

impl Generate for Native<'_> {
    fn context(&self) -> usize {
        self.settings.context
    }

    fn reset(&mut self) {
        self.used = 0;
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        check_tokens(tokens, self.shape.vocab, self.used, self.settings.context)?;
        let last = (tokens.len() - 1) / BATCH;
        for (index, batch) in tokens.chunks(BATCH).enumerate() {
            self.run_layers(batch, usize::from(index == last));
        }
        Ok(self.head())
    }
}

impl<'file> Embedding<'file> {
    fn load(tensors: &Tensors<'_, 'file>, shape: &Shape) -> Result<Self, EngineError> {
        const NAME: &str = "token_embd.weight";
        let (info, bytes) = tensors.get(NAME)?;
        let embedding = Embedding {
            ty: info.ty,
            row_bytes: bytes.len() / shape.vocab,
            bytes,
        };
        // What can go wrong with one row goes wrong with all.
        let row = &bytes[..embedding.row_bytes];
        match info.ty.dequantize_row(row, &mut vec![0.0; shape.hidden]) {
            Ok(()) => Ok(embedding),
            Err(_) => Err(EngineError::Type {
                name: NAME.into(),
                found: info.ty.to_string(),
                expected: "a type that we can dequantize",
            }),
        }
    }

    fn read(&self, token: u32, x: &mut [f32]) {
        let row = &self.bytes[token as usize * self.row_bytes..][..self.row_bytes];
        self.ty
            .dequantize_row(row, x)
            .expect("loading has tried the type and the length");
    }
}

impl Layer {
    fn load(tensors: &Tensors, index: usize, shape: &Shape) -> Result<Self, EngineError> {
        let [q, k, v, o, gate, up, down] = shape.linears().map(|(part, _, _)| tensors.linear(index, part));
        Ok(Layer {
            attention_norm: tensors.norm(&format!("blk.{index}.attn_norm.weight"))?,
            q: q?,
            k: k?,
            v: v?,
            o: o?,
            ffn_norm: tensors.norm(&format!("blk.{index}.ffn_norm.weight"))?,
            gate: gate?,
            up: up?,
            down: down?,
        })
    }

    fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }
}

impl Linear {
    fn add_bias(&self, y: &mut [f32]) {
        if let Some(bias) = &self.bias {
            math::add(y, bias, None);
        }
    }
}

/// The file's tensors, as matrices and vectors. [`Shape::read`] has checked names, shapes and the type of vectors.
struct Tensors<'a, 'file> {
    file: &'a File<'file>,
    options: kernels::Options,
}

impl<'file> Tensors<'_, 'file> {
    fn get(&self, name: &str) -> Result<(&formats::gguf::TensorInfo, &'file [u8]), EngineError> {
        self.file
            .tensor(name)
            .ok_or_else(|| EngineError::MissingTensor { name: name.into() })
    }

    fn matrix(&self, name: &str) -> Result<Matrix, EngineError> {
        let (info, bytes) = self.get(name)?;
        let (rows, columns) = (info.rows() as usize, info.columns() as usize);
        Matrix::new(info.ty, rows, columns, bytes, &self.options).map_err(|source| EngineError::Kernel {
            name: name.into(),
            source,
        })
    }

    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>, EngineError> {
        let Some((_, bytes)) = self.file.tensor(name) else {
            return Ok(None);
        };
        Ok(Some(
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|&number| f32::from_le_bytes(number))
                .collect(),
        ))
    }

    fn norm(&self, name: &str) -> Result<Vec<f32>, EngineError> {
        self.vector(name)?
            .ok_or_else(|| EngineError::MissingTensor { name: name.into() })
    }

    fn linear(&self, layer: usize, part: &str) -> Result<Linear, EngineError> {
        let matrix = self.matrix(&format!("blk.{layer}.{part}.weight"))?;
        Ok(Linear {
            matrix,
            bias: self.vector(&format!("blk.{layer}.{part}.bias"))?,
        })
    }
}

impl Buffers {
    fn new(isa: kernels::Isa) -> Self {
        Buffers {
            activations: Activations::new(isa),
            x: Vec::new(),
            normed: Vec::new(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            mixed: Vec::new(),
            gate: Vec::new(),
            up: Vec::new(),
            out: Vec::new(),
        }
    }

    /// `normed = norm(x)`
    fn norm(&mut self, level: Level, weight: &[f32], epsilon: f32, threads: &Threads) {
        let hidden = weight.len();
        self.normed.resize(self.x.len(), 0.0);
        let x = &self.x;
        for_each_row(threads, &mut self.normed, hidden, |token, normed| {
            let x = &x[token * hidden..][..hidden];
            math::rms_norm(level, x, weight, epsilon, normed);
        });
    }

    /// `x += out + bias`
    fn add_out(&mut self, bias: Option<&[f32]>, hidden: usize, threads: &Threads) {
        let out = &self.out;
        for_each_row(threads, &mut self.x, hidden, |token, x| {
            math::add(x, &out[token * hidden..][..hidden], bias);
        });
    }
}

/// The products of several matrices with the same `x`, which is quantized once for all that round it the same way.
fn multiply<const N: usize>(
    activations: &mut Activations,
    x: &[f32],
    products: [(&Matrix, &mut Vec<f32>); N],
    threads: &Threads,
) {
    let mut quantized: Option<Grouping> = None;
    for (matrix, y) in products {
        if quantized != Some(matrix.grouping()) {
            activations.quantize(x, matrix.columns(), matrix.grouping(), threads);
            quantized = Some(matrix.grouping());
        }
        y.resize(activations.tokens() * matrix.rows(), 0.0);
        matrix.multiply(activations, y, threads);
    }
}

/// `work(i, row i)` for every row of `width` numbers, several of them a piece of work.
fn for_each_row(threads: &Threads, data: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    /// Numbers in a piece of work: some microseconds.
    const PIECE: usize = 1 << 15;
    let rows = (PIECE / width).max(1);
    for_each_chunk(threads, data, rows * width, |chunk, data| {
        for (row, data) in data.chunks_exact_mut(width).enumerate() {
            work(chunk * rows + row, data);
        }
    });
}

/// `work(i, chunk i)` for every chunk of `size` items, on all threads.
fn for_each_chunk<T: Send>(threads: &Threads, data: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    // Each chunk is taken once; the lock shows the compiler that nobody else holds it.
    let chunks: Vec<Mutex<&mut [T]>> = data.chunks_mut(size).map(Mutex::new).collect();
    threads.run(chunks.len(), |i| {
        work(i, &mut chunks[i].lock().expect("each chunk is locked once"))
    });
}
