//! Memory for packed weights, in huge pages where the system gives them, and for what is multiplied with them.
//!
//! A decode step reads every weight once, so it runs at the speed of memory, and with 4 KiB pages one core
//! reads about half as fast as with 2 MiB pages (16 against 30 GB/s on a Zen 4).

use std::io;

use aligned_vec::{AVec, ConstAlign};
use memmap2::MmapMut;

/// A vector that begins at a cache line: a vector register that lies in two of them is read and written at half the speed.
pub(crate) type LineVec<T> = AVec<T, ConstAlign<64>>;

const HUGE_PAGE: usize = 2 << 20;

/// A zeroed, 2 MiB aligned piece of memory.
pub(crate) struct Region {
    map: MmapMut,
    start: usize,
    length: usize,
}

impl Region {
    /// `length` zero bytes.
    pub(crate) fn zeroed(length: usize) -> io::Result<Region> {
        let pages = length.checked_next_multiple_of(HUGE_PAGE);
        let with_alignment = pages.and_then(|bytes| bytes.checked_add(HUGE_PAGE));
        let map = MmapMut::map_anon(with_alignment.ok_or(io::ErrorKind::OutOfMemory)?)?;
        let start = map.as_ptr().align_offset(HUGE_PAGE);
        #[cfg(all(target_os = "linux", not(miri)))] // Miri has no madvise
        {
            // The last page is worth being huge only when enough of it is used.
            let tail = length % HUGE_PAGE;
            let huge = if tail < HUGE_PAGE / 4 {
                length - tail
            } else {
                length.next_multiple_of(HUGE_PAGE)
            };
            // Only a hint: without it everything works, slower.
            let _ = map.advise_range(memmap2::Advice::HugePage, start, huge);
        }
        Ok(Region { map, start, length })
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }
}

impl std::ops::Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.start..self.start + self.length]
    }
}

impl std::ops::DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..self.start + self.length]
    }
}

/// Fetch the cache line at `place`, which may be any, as far as the second-level cache, where the CPU can be told to.
#[inline(always)]
pub(crate) fn fetch(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every CPU of this architecture has the instruction; it reads nothing and may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
