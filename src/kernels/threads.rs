//! A small pool of threads that wait by spinning.
//!
//! Decoding one token runs some 150 matrix products of 20 to 200 microseconds each. Waking a sleeping thread costs
//! 5 to 50 microseconds, so the workers spin for a while after each job and only then go to sleep.
//!
//! ```text
//! run(chunks, task):  publish the job, open it          worker:  wait until a new job is open
//!                     take chunks until none is left             enter it, take chunks until none is left, leave
//!                     close it, wait for those inside
//! ```
//! 1. Chunks are taken from a shared counter, so a thread that the system delays holds up one chunk, not its share.
//! 2. The caller waits only for workers that entered. One that never woke up cannot hold anything up.
//! 3. A call from inside a task, or while another thread runs a job, does its chunks itself.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker spins for the next job before it sleeps.
const SPIN: Duration = Duration::from_micros(200);

/// In [`Shared::gate`]: the job may be entered.
const OPEN: u64 = 1 << 16;
/// In [`Shared::gate`]: one more job.
const EPOCH: u64 = 1 << 17;
/// In [`Shared::gate`]: how many workers are inside.
const INSIDE: u64 = OPEN - 1;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// One job, valid between opening and the moment the last worker has left.
#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    chunks: usize,
}

struct Shared {
    /// Job number, open flag and number of workers inside, in one word so that entering is one compare-exchange.
    gate: AtomicU64,
    job: std::cell::UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only while the gate is closed and nobody is inside, and read only by threads that entered
// the open gate; the gate's acquire and release order these accesses. The task it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: all but `job` may be sent by itself, and the task that `job` points to is `Sync`; the pointer is never used
// after the job that it belongs to.
unsafe impl Send for Shared {}

/// A pool of threads; the calling thread is one of them.
pub struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    busy: Mutex<()>,
}

impl Threads {
    /// A pool of `count` threads, the caller included; 0 means one for each core.
    pub fn new(count: usize) -> Threads {
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: std::cell::UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
        });
        let workers = (1..count)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("kernel-{index}"))
                    .spawn(move || shared.work())
                    .ok()
            })
            .collect();
        Threads {
            shared,
            workers,
            busy: Mutex::new(()),
        }
    }

    /// Number of threads, the caller included.
    pub fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Call `task(i)` once for every i below `chunks`, on all threads; returns when all calls have returned.
    ///
    /// # Panics
    /// When a task panicked, with that panic.
    pub fn run(&self, chunks: usize, task: impl Fn(usize) + Sync) {
        let guard = if chunks > 1 && !self.workers.is_empty() {
            self.busy.try_lock().ok()
        } else {
            None
        };
        if guard.is_none() {
            return (0..chunks).for_each(task);
        }
        let task: &Task<'_> = &task;
        // SAFETY: only the lifetime changes. No thread holds the reference after `run` returns: the gate is closed
        // and empty by then, also when the task panics.
        let task: &'static Task<'static> = unsafe { std::mem::transmute(task) };
        let shared = &*self.shared;
        shared.next.store(0, Ordering::Relaxed);
        // SAFETY: the gate is closed and empty since the last job, and `busy` keeps other callers out.
        unsafe { *shared.job.get() = Some(Job { task, chunks }) };
        let closed = shared.gate.load(Ordering::Relaxed);
        shared.gate.store((closed + EPOCH) | OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(shared.sleep.lock());
            shared.wake.notify_all();
        }

        let outcome = catch_unwind(AssertUnwindSafe(|| shared.take_chunks(Job { task, chunks })));
        shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while shared.gate.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins.is_multiple_of(1 << 14) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
        }
        let panic = outcome.err().or(lock(&shared.panic).take());
        drop(guard);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.sleep.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// A lock whose data stays valid when a holder panicked.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Shared {
    fn work(&self) {
        let mut last = 0;
        while let Some(epoch) = self.wait_for_job(last) {
            last = epoch;
            if self.enter(epoch) {
                // SAFETY: this thread is inside the open gate, so the job is there and its task lives.
                let job = unsafe { (*self.job.get()).expect("an open gate has a job") };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_chunks(job))) {
                    *lock(&self.panic) = Some(panic);
                }
                self.gate.fetch_sub(1, Ordering::Release);
            }
        }
    }

    fn take_chunks(&self, job: Job) {
        // SAFETY: the caller is `run` itself or inside its gate, so the task lives.
        let task = unsafe { &*job.task };
        loop {
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            if chunk >= job.chunks {
                return;
            }
            task(chunk);
        }
    }

    /// Count this thread as inside, unless the job `epoch` is closed.
    fn enter(&self, epoch: u64) -> bool {
        let mut gate = self.gate.load(Ordering::Relaxed);
        loop {
            if gate & OPEN == 0 || gate / EPOCH != epoch {
                return false;
            }
            match self
                .gate
                .compare_exchange_weak(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(now) => gate = now,
            }
        }
    }

    /// The number of the open job that follows job `last`; None when the pool stops.
    fn wait_for_job(&self, last: u64) -> Option<u64> {
        let open = || {
            let gate = self.gate.load(Ordering::SeqCst);
            (gate & OPEN != 0 && gate / EPOCH != last).then_some(gate / EPOCH)
        };
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                if let Some(epoch) = open() {
                    return Some(epoch);
                }
                std::hint::spin_loop();
            }
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if start.elapsed() > SPIN {
                break;
            }
        }
        let mut sleep = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let found = loop {
            if self.stop.load(Ordering::SeqCst) {
                break None;
            }
            if let Some(epoch) = open() {
                break Some(epoch);
            }
            sleep = self.wake.wait(sleep).unwrap_or_else(|poisoned| poisoned.into_inner());
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once() {
        for count in [1, 2, 3, 5] {
            let threads = Threads::new(count);
            assert_eq!(threads.count(), count);
            for chunks in [0, 1, 2, 7, 100] {
                for pause in [0, 1] {
                    let calls: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                    threads.run(chunks, |i| {
                        calls[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
                    std::thread::sleep(Duration::from_millis(pause)); // long enough for the workers to fall asleep
                }
            }
        }
    }

    #[test]
    fn a_task_may_run_tasks() {
        let threads = Threads::new(2);
        let sum = AtomicUsize::new(0);
        threads.run(4, |i| {
            threads.run(4, |j| {
                sum.fetch_add(i * j, Ordering::Relaxed);
            })
        });
        assert_eq!(sum.into_inner(), 36);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let threads = Threads::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| threads.run(64, |i| assert!(i != 40, "chunk {i}"))));
        assert_eq!(caught.unwrap_err().downcast_ref::<String>().unwrap(), "chunk 40");
        let sum = AtomicUsize::new(0);
        threads.run(64, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 64 * 63 / 2);
    }
}
