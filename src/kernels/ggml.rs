//! The same products by llama.cpp's ggml: the second witness of `verify`, and what `bench` compares with.
//!
//! Products run through ggml's public graph interface on its CPU backend, so they include its own choice of kernel
//! and its own quantization of the activations. Weights are as in the file: what llama.cpp repacks for itself when
//! it loads a model (Q4_0, Q8_0 and K types on some CPUs) is not repacked here.

use super::memory::Region;
use formats::block::BlockType;
use llama_cpp_sys_2 as sys;

/// Products `W x`, one for each of several copies of W, in graphs of several products each.
pub struct Products {
    context: *mut sys::ggml_context,
    graphs: Vec<(*mut sys::ggml_cgraph, sys::ggml_cplan)>,
    pool: *mut sys::ggml_threadpool,
    x: *mut sys::ggml_tensor,
    y: Vec<*mut sys::ggml_tensor>,
    // What the pointers above point into.
    _work: Region,
    _memory: Region,
}

impl Products {
    /// `graphs` graphs of `batch` products of (rows, columns) weights with `tokens` activations each, every product
    /// with its own copy of the weights, on `threads` threads.
    ///
    /// None where ggml refuses: it cannot multiply this type, or the system gives no memory.
    ///
    /// # Panics
    /// Where `weights` is no (rows, columns) matrix of this type, or a size is 0.
    pub fn new(
        ty: BlockType,
        (rows, columns): (usize, usize),
        tokens: usize,
        weights: &[u8],
        (graphs, batch): (usize, usize),
        threads: usize,
    ) -> Option<Products> {
        assert!(rows > 0 && columns > 0 && tokens > 0 && graphs > 0 && batch > 0 && threads > 0);
        let row_bytes = ty.row_bytes(columns).expect("rows of whole blocks");
        assert_eq!(weights.len(), rows * row_bytes, "bytes of the weights");
        // SAFETY: ggml is called as its header says; every tensor belongs to `context`, which allocates from
        // `memory`, and the sizes of what is copied are the sizes that the tensors were made with.
        unsafe {
            sys::ggml_cpu_init();
            let overhead = sys::ggml_tensor_overhead() + 64;
            let product = weights.len() + 4 * rows * tokens + 2 * overhead;
            let graph = sys::ggml_graph_overhead_custom(2 * batch + 1, false);
            let size = graphs * (graph + batch * product) + 4 * columns * tokens + 2 * overhead;
            let mut memory = Region::zeroed(size).ok()?;
            let context = sys::ggml_init(sys::ggml_init_params {
                mem_size: size,
                mem_buffer: memory.as_mut_ptr().cast(),
                no_alloc: false,
            });
            if context.is_null() {
                return None;
            }
            let (ne0, ne1) = (columns as i64, rows as i64);
            let x = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, ne0, tokens as i64);
            let mut parameters = sys::ggml_threadpool_params_default(threads as i32);
            let pool = sys::ggml_threadpool_new(&mut parameters);
            let mut y = Vec::with_capacity(graphs * batch);
            let mut work_size = 0;
            let mut graphs: Vec<_> = (0..graphs)
                .map(|_| {
                    let graph = sys::ggml_new_graph_custom(context, 2 * batch + 1, false);
                    for _ in 0..batch {
                        let w =
                            sys::ggml_new_tensor_2d(context, ty.id() as sys::ggml_type, ne0, ne1);
                        let to = sys::ggml_get_data(w).cast::<u8>();
                        to.copy_from_nonoverlapping(weights.as_ptr(), weights.len());
                        let product = sys::ggml_mul_mat(context, w, x);
                        sys::ggml_build_forward_expand(graph, product);
                        y.push(product);
                    }
                    let plan = sys::ggml_graph_plan(graph, threads as i32, pool);
                    work_size = work_size.max(plan.work_size);
                    (graph, plan)
                })
                .collect();
            let mut work = Region::zeroed(work_size).ok()?;
            for (_, plan) in &mut graphs {
                plan.work_data = work.as_mut_ptr();
            }
            Some(Products {
                context,
                graphs,
                pool,
                x,
                y,
                _work: work,
                _memory: memory,
            })
        }
    }

    /// Compute the products of graph `index` with `x` (tokens, columns).
    ///
    /// # Panics
    /// Where `x` has another length than was promised, or ggml fails.
    pub fn compute(&mut self, index: usize, x: &[f32]) {
        let (graph, plan) = &mut self.graphs[index];
        // SAFETY: the tensor has as many floats as are copied; the graph and its plan belong together.
        unsafe {
            assert_eq!(x.len() as i64, sys::ggml_nelements(self.x), "activations");
            sys::ggml_get_data_f32(self.x).copy_from_nonoverlapping(x.as_ptr(), x.len());
            let status = sys::ggml_graph_compute(*graph, plan);
            assert_eq!(status, sys::GGML_STATUS_SUCCESS, "ggml_graph_compute");
        }
    }

    /// Let the idle threads sleep until the next product. On their own they spin for some 70 ms
    /// (ggml-cpu.c:3213), at the expense of whoever computes next.
    pub fn rest(&mut self) {
        // SAFETY: the pool was made in `new`; its threads wake by themselves when a graph is computed.
        unsafe { sys::ggml_threadpool_pause(self.pool) }
    }

    /// Wake the threads, which then wait for the next product.
    pub fn wake(&mut self) {
        // SAFETY: the pool was made in `new`.
        unsafe { sys::ggml_threadpool_resume(self.pool) }
    }

    /// The product with copy `index` (tokens, rows), as last computed.
    pub fn result(&self, index: usize) -> &[f32] {
        let y = self.y[index];
        // SAFETY: an F32 tensor of this context, written by `compute` only.
        unsafe {
            std::slice::from_raw_parts(sys::ggml_get_data_f32(y), sys::ggml_nelements(y) as usize)
        }
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        // SAFETY: made in `new`, used nowhere else.
        unsafe {
            sys::ggml_threadpool_free(self.pool);
            sys::ggml_free(self.context);
        }
    }
}

/// The CPU features that ggml was built with, as it prints them.
pub fn system() -> String {
    // SAFETY: returns a static string.
    unsafe { std::ffi::CStr::from_ptr(sys::llama_print_system_info()) }
        .to_string_lossy()
        .into_owned()
}
