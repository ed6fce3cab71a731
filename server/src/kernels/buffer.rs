//! Memory for kernels: aligned to cache lines, zeroed, and on huge pages where it is large.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use half::bf16;

/// A cache line, and an AVX-512 register: no load crosses two lines.
const LINE: usize = 64;

/// A huge page of x86-64 and of aarch64 with 4 KiB pages.
const HUGE_PAGE: usize = 2 << 20;

/// Numbers for which a run of zero bytes is zero.
///
/// # Safety
///
/// All bit patterns are valid, zero bytes included, and nothing has to be dropped.
pub(crate) unsafe trait Number: Copy {}

// SAFETY: a plain IEEE number.
unsafe impl Number for f32 {}
// SAFETY: a transparent u16.
unsafe impl Number for bf16 {}

/// A fixed number of elements, zero at first.
pub(crate) struct Buffer<T: Number> {
    start: NonNull<T>,
    len: usize,
    layout: Layout,
}

// SAFETY: it owns its memory as a `Box<[T]>` does, and `T` is plain data.
unsafe impl<T: Number + Send> Send for Buffer<T> {}
// SAFETY: see above.
unsafe impl<T: Number + Sync> Sync for Buffer<T> {}

impl<T: Number> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Panics
    ///
    /// Where `len` elements are more than an address space holds.
    pub(crate) fn zeroed(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>()).map(|bytes| bytes.max(LINE));
        // Half a page of waste is worth it: the table of the CPU's page addresses is small, and
        // weights are read from one end to the other for every batch.
        let align = |bytes| if bytes >= 2 * HUGE_PAGE { HUGE_PAGE } else { LINE };
        let layout = bytes.and_then(|bytes| Layout::from_size_align(bytes, align(bytes)).ok());
        let layout = layout.expect("a buffer fits into the address space");
        // SAFETY: the size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start.cast::<T>()) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if layout.align() == HUGE_PAGE {
            // SAFETY: the range is ours; the advice changes no content. Whether it is taken is
            // the kernel's business.
            unsafe { libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        Self { start, len, layout }
    }
}

impl<T: Number> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and dropped once.
        unsafe { dealloc(self.start.as_ptr().cast(), self.layout) };
    }
}

impl<T: Number> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised elements that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Number> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Number> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} elements)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zero_and_can_be_empty() {
        for len in [0, 1, 1000, 3 << 20] {
            let mut buffer = Buffer::<f32>::zeroed(len);
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % LINE), (len, 0));
            assert!(buffer.iter().all(|&value| value.to_bits() == 0));
            buffer.fill(1.0);
        }
    }
}
