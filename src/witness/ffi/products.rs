//! Products by ggml: the second opinion of `verify`, and what `bench` compares with.
//!
//! They run through ggml's public graph interface on its CPU backend, so they include its own choice of kernel and its
//! own quantization of the activations. Weights are as in the file: what llama.cpp repacks for itself when it loads a
//! model (Q4_0, Q8_0 and K types on some CPUs) is not repacked here.

use std::ptr::NonNull;
use std::time::Instant;

use super::super::answer::Refusal;
use super::api::{
    Api, ContextParameters, F32, GgmlContext, GgmlGraph, GgmlTensor, GgmlThreadpool, Plan, SUCCESS,
    ThreadpoolParameters,
};
use crate::kernels::memory::Region;
use formats::block::BlockType;

/// Products `W x`, one for each of several copies of W, in graphs of several products each.
pub(super) struct Products {
    api: Api,
    graphs: Vec<(*mut GgmlGraph, Plan)>,
    x: *mut GgmlTensor,
    y: Vec<*mut GgmlTensor>,
    // What the pointers above point into, in the order in which it is freed.
    pool: Pool,
    _context: Context,
    _work: Region,
    _memory: Region,
}

impl Products {
    /// `graphs` graphs of `batch` products of (rows, columns) weights with `tokens` activations each, every product
    /// with its own copy of the weights, on `threads` threads.
    pub fn new(
        api: Api,
        ty: BlockType,
        (rows, columns): (usize, usize),
        tokens: usize,
        weights: &[u8],
        (graphs, batch): (usize, usize),
        threads: usize,
    ) -> Result<Products, Refusal> {
        let refused = |why: String| Err(Refusal::Llama(why));
        if !can_multiply(&api, ty) {
            return refused(format!("ggml has no product of {ty} on the CPU"));
        }
        let bytes = ty.row_bytes(columns).and_then(|row| row.checked_mul(rows));
        if bytes != Some(weights.len()) || [rows, columns, tokens, graphs, batch, threads].contains(&0) {
            let length = weights.len();
            return refused(format!("{length} bytes of {ty} are no {rows} x {columns} matrix"));
        }
        let no_memory = |error| Refusal::CouldNot(format!("no memory for the product: {error}; free memory"));
        let overhead = overhead(&api);
        let product = weights.len() + 4 * rows * tokens + 2 * overhead;
        let size = graphs * (graph_overhead(&api, batch) + batch * product) + 4 * columns * tokens + 2 * overhead;
        let mut memory = Region::zeroed(size).map_err(no_memory)?;
        let context = Context::new(api, &mut memory)?;
        let pool = Pool::new(api, threads)?;
        let mut y = Vec::with_capacity(graphs * batch);
        // SAFETY: ggml is called as its header says. Every tensor belongs to the context, which allocates from
        // `memory`, and `size` is what these tensors and graphs need; the sizes of what is copied are the sizes that
        // the tensors are made with.
        let (x, mut graphs) = unsafe {
            let (ne0, ne1) = (columns as i64, rows as i64);
            let context = context.pointer.as_ptr();
            let x = (api.ggml_new_tensor_2d)(context, F32, ne0, tokens as i64);
            let mut graph = || {
                let graph = (api.ggml_new_graph_custom)(context, 2 * batch + 1, false);
                for _ in 0..batch {
                    let w = (api.ggml_new_tensor_2d)(context, ty.id(), ne0, ne1);
                    let to = (api.ggml_get_data)(w).cast::<u8>();
                    to.copy_from_nonoverlapping(weights.as_ptr(), weights.len());
                    let product = (api.ggml_mul_mat)(context, w, x);
                    (api.ggml_build_forward_expand)(graph, product);
                    y.push(product);
                }
                let plan = (api.ggml_graph_plan)(graph, threads as i32, pool.pointer.as_ptr());
                (graph, plan)
            };
            (x, (0..graphs).map(|_| graph()).collect::<Vec<_>>())
        };
        let work_size = graphs.iter().map(|(_, plan)| plan.work_size).max();
        let mut work = Region::zeroed(work_size.unwrap_or(0)).map_err(no_memory)?;
        for (_, plan) in &mut graphs {
            plan.work_data = work.as_mut_ptr();
        }
        Ok(Products {
            api,
            graphs,
            x,
            y,
            pool,
            _context: context,
            _work: work,
            _memory: memory,
        })
    }

    /// Compute the products of graph `index` with `x` (tokens, columns).
    ///
    /// # Panics
    /// Where `x` has another length than was promised, or ggml fails.
    pub fn compute(&mut self, index: usize, x: &[f32]) {
        let (graph, plan) = &mut self.graphs[index];
        // SAFETY: the tensor has as many floats as are copied; the graph and its plan belong together.
        unsafe {
            assert_eq!(x.len() as i64, (self.api.ggml_nelements)(self.x), "activations");
            (self.api.ggml_get_data)(self.x)
                .cast::<f32>()
                .copy_from_nonoverlapping(x.as_ptr(), x.len());
            let status = (self.api.ggml_graph_compute)(*graph, plan);
            assert_eq!(status, SUCCESS, "ggml_graph_compute");
        }
    }

    /// Seconds that computing graph `index` takes so many times. The threads are awake when the time begins, and rest
    /// when it has ended: on their own they spin for some 70 ms (ggml-cpu.c:3213), at the expense of whoever computes
    /// next.
    pub fn time(&mut self, index: usize, repeats: usize, x: &[f32]) -> f64 {
        self.pool.wake();
        let start = Instant::now();
        (0..repeats).for_each(|_| self.compute(index, x));
        let time = start.elapsed().as_secs_f64();
        self.pool.rest();
        time
    }

    /// The product with copy `index` (tokens, rows), as last computed.
    pub fn result(&self, index: usize) -> &[f32] {
        let y = self.y[index];
        // SAFETY: an F32 tensor of this context, written by `compute` only.
        unsafe {
            std::slice::from_raw_parts(
                (self.api.ggml_get_data)(y).cast::<f32>(),
                (self.api.ggml_nelements)(y) as usize,
            )
        }
    }
}

/// ggml's bookkeeping, in memory of ours.
struct Context {
    api: Api,
    pointer: NonNull<GgmlContext>,
}

impl Context {
    /// `memory` has to outlive the context.
    fn new(api: Api, memory: &mut Region) -> Result<Self, Refusal> {
        let parameters = ContextParameters {
            mem_size: memory.len(),
            mem_buffer: memory.as_mut_ptr().cast(),
            no_alloc: false,
        };
        // SAFETY: the buffer is as long as is said, and used by nothing else while the context lives.
        NonNull::new(unsafe { (api.ggml_init)(parameters) })
            .map(|pointer| Self { api, pointer })
            .ok_or_else(|| Refusal::CouldNot("ggml has no memory for a context; free memory".into()))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_init`, freed once.
        unsafe { (self.api.ggml_free)(self.pointer.as_ptr()) }
    }
}

/// ggml's threads.
struct Pool {
    api: Api,
    pointer: NonNull<GgmlThreadpool>,
}

impl Pool {
    fn new(api: Api, threads: usize) -> Result<Self, Refusal> {
        let mut parameters = ThreadpoolParameters::ZERO;
        // SAFETY: the parameters are ggml's own, and live during the call.
        NonNull::new(unsafe {
            (api.ggml_threadpool_params_init)(&mut parameters, threads as i32);
            (api.ggml_threadpool_new)(&mut parameters)
        })
        .map(|pointer| Self { api, pointer })
        .ok_or_else(|| Refusal::CouldNot("ggml has no memory for its threads; free memory".into()))
    }

    /// Let the idle threads sleep until they are woken.
    fn rest(&mut self) {
        // SAFETY: the pool lives; its threads wake by themselves when a graph is computed.
        unsafe { (self.api.ggml_threadpool_pause)(self.pointer.as_ptr()) }
    }

    /// Wake the threads, which then wait for the next product.
    fn wake(&mut self) {
        // SAFETY: the pool lives.
        unsafe { (self.api.ggml_threadpool_resume)(self.pointer.as_ptr()) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_threadpool_new`, freed once; no graph is being computed.
        unsafe { (self.api.ggml_threadpool_free)(self.pointer.as_ptr()) }
    }
}

/// Whether ggml knows the type, which older builds may not, and has a CPU kernel for a matrix of it.
fn can_multiply(api: &Api, ty: BlockType) -> bool {
    let id = ty.id();
    // SAFETY: no bytes are read; it is false for a type that this build does not know.
    let known = unsafe { (api.ggml_validate_row_data)(id, NonNull::dangling().as_ptr(), 0) };
    // SAFETY: the table has an entry for each type that is known, and is constant.
    known && unsafe { !(*(api.ggml_get_type_traits_cpu)(id)).vec_dot.is_null() }
}

/// Bytes that a tensor needs beside its data, with its alignment.
fn overhead(api: &Api) -> usize {
    // SAFETY: returns a constant.
    unsafe { (api.ggml_tensor_overhead)() + 64 }
}

/// Bytes of a graph of so many products.
fn graph_overhead(api: &Api, batch: usize) -> usize {
    // SAFETY: takes no pointers.
    unsafe { (api.ggml_graph_overhead_custom)(2 * batch + 1, false) }
}
