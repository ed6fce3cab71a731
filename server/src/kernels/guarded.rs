//! Memory between two pages that nobody may touch: a kernel that reads or writes one element
//! too far ends the test with a segmentation fault. (Miri knows no vector instructions.)

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// Where the elements lie between the guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Against {
    /// Right after the first guard page.
    Start,
    /// Right before the last one.
    End,
}

/// Elements between guard pages.
pub(super) struct Guarded<T> {
    map: *mut libc::c_void,
    bytes: usize,
    offset: usize,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Copy> Guarded<T> {
    pub(super) fn of(elements: &[T], against: Against) -> Self {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let room = size_of_val(elements).next_multiple_of(page).max(page);
        let bytes = room + 2 * page;
        // SAFETY: a new mapping, whose first and last page stay without access.
        let map = unsafe {
            let map = libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(map, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(map.byte_add(page), room, libc::PROT_READ | libc::PROT_WRITE), 0);
            map
        };
        let offset = match against {
            Against::Start => page,
            Against::End => page + room - size_of_val(elements),
        };
        let mut guarded = Self { map, bytes, offset, len: elements.len(), elements: PhantomData };
        guarded.copy_from_slice(elements);
        guarded
    }
}

impl<T> Deref for Guarded<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements within the accessible pages, aligned as their size divides a page.
        unsafe { std::slice::from_raw_parts(self.map.byte_add(self.offset).cast(), self.len) }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.map.byte_add(self.offset).cast(), self.len) }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by us, with this size.
        unsafe { libc::munmap(self.map, self.bytes) };
    }
}
