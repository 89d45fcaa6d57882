//! Work on parts of a buffer, on all threads.

use std::sync::Mutex;

use crate::kernels::Threads;

/// `work(i, row i)` for every row of `width` numbers, several of them a piece of work.
pub fn for_each_row(threads: &Threads, data: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
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
pub fn for_each_chunk<T: Send>(threads: &Threads, data: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    // Each chunk is taken once; the lock shows the compiler that nobody else holds it.
    let chunks: Vec<Mutex<&mut [T]>> = data.chunks_mut(size).map(Mutex::new).collect();
    threads.run(chunks.len(), |i| {
        work(i, &mut chunks[i].lock().expect("each chunk is locked once"))
    });
}
