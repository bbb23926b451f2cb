//! A heap for policies: free lists of power-of-two blocks over memory that only grows.
//!
//! A call brings a string and a list and gives both back, so the next call finds blocks of its size on the lists:
//! taking and giving back are a few instructions each, and memory stays where the largest call left it. A block wastes
//! at most half of itself; blocks are never joined or split.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::ptr::null_mut;

const PAGE_BYTES: usize = 64 * 1024;
const BLOCK_BYTES_MIN: usize = 16;
/// Blocks are aligned to this; a layout that asks for more is refused.
const ALIGN_MAX: usize = 16;
/// Classes are named by the power of two; the last one holds 1 GiB.
const CLASSES: usize = 31;

/// Where a heap gets fresh memory.
pub trait Source {
    /// The address of `bytes` (a multiple of [`PAGE_BYTES`]) of fresh, page-aligned memory, or None at the limit.
    fn grow(&self, bytes: usize) -> Option<usize>;
}

pub struct Heap<S> {
    source: S,
    /// Per class, the address of the first free block; a free block begins with the address of the next one.
    free: [Cell<usize>; CLASSES],
    /// Fresh memory that was never given out: `next..end`.
    next: Cell<usize>,
    end: Cell<usize>,
}

impl<S: Source> Heap<S> {
    pub const fn new(source: S) -> Self {
        Self { source, free: [const { Cell::new(0) }; CLASSES], next: Cell::new(0), end: Cell::new(0) }
    }

    /// Takes a block from fresh memory. Pages that join the ones before extend them.
    #[cold]
    fn fresh(&self, bytes: usize) -> Option<usize> {
        if self.end.get() - self.next.get() < bytes {
            let address = self.source.grow(bytes.next_multiple_of(PAGE_BYTES))?;
            if address != self.end.get() {
                self.next.set(address);
            }
            self.end.set(address + bytes.next_multiple_of(PAGE_BYTES));
        }
        let address = self.next.get();
        self.next.set(address + bytes);
        Some(address)
    }
}

/// The class whose blocks hold `layout`, or None when no block does.
#[inline]
fn class(layout: Layout) -> Option<usize> {
    let bytes = layout.size().max(BLOCK_BYTES_MIN);
    let class = (usize::BITS - (bytes - 1).leading_zeros()) as usize;
    (class < CLASSES && layout.align() <= ALIGN_MAX).then_some(class)
}

// SAFETY: a block is on a free list or given out, never both; a block of class c has 2^c bytes, at least the layout's,
// at a multiple of 16, because fresh memory starts at a page and every block is a multiple of 16 long.
#[allow(unsafe_code)]
unsafe impl<S: Source> GlobalAlloc for Heap<S> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class(layout) else { return null_mut() };
        let free = &self.free[class];
        match free.get() {
            0 => self.fresh(1 << class).map_or(null_mut(), |address| address as *mut u8),
            address => {
                // SAFETY: the block is free, so its first word is the address of the next free one.
                free.set(unsafe { *(address as *const usize) });
                address as *mut u8
            }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(class) = class(layout) else { return };
        // SAFETY: the caller gives the block back; its first word is ours again.
        unsafe { *block.cast::<usize>() = self.free[class].get() };
        self.free[class].set(block as usize);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller promises that `bytes` and the layout's alignment make a layout.
        let wanted = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        if class(wanted) == class(layout) {
            return block;
        }
        // SAFETY: the new block is another one, and both hold the bytes that are copied.
        unsafe {
            let moved = self.alloc(wanted);
            if !moved.is_null() {
                core::ptr::copy_nonoverlapping(block, moved, layout.size().min(bytes));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

#[cfg(target_family = "wasm")]
mod global {
    use super::*;

    pub struct LinearMemory;

    impl Source for LinearMemory {
        fn grow(&self, bytes: usize) -> Option<usize> {
            let page = core::arch::wasm32::memory_grow::<0>(bytes / PAGE_BYTES);
            (page != usize::MAX).then(|| page * PAGE_BYTES)
        }
    }

    // SAFETY: an instance of a component is entered by one thread at a time, and this target has no threads of its own.
    #[allow(unsafe_code)]
    unsafe impl Sync for Heap<LinearMemory> {}

    #[global_allocator]
    static HEAP: Heap<LinearMemory> = Heap::new(LinearMemory);

    /// Where the host puts the strings and lists of a call. The standard library's C library would bring this function.
    #[allow(unsafe_code)]
    #[unsafe(export_name = "cabi_realloc")]
    unsafe extern "C" fn cabi_realloc(block: *mut u8, old_bytes: usize, align: usize, bytes: usize) -> *mut u8 {
        if bytes == 0 {
            return align as *mut u8;
        }
        // SAFETY: the canonical ABI passes a power of two as `align`, and as block and old size those of an earlier
        // call.
        let block = unsafe {
            match old_bytes {
                0 => HEAP.alloc(Layout::from_size_align_unchecked(bytes, align)),
                _ => HEAP.realloc(block, Layout::from_size_align_unchecked(old_bytes, align), bytes),
            }
        };
        if block.is_null() {
            core::arch::wasm32::unreachable()
        }
        block
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;

    /// A fixed arena that hands its pages out in order.
    struct Arena {
        memory: Vec<u128>,
        used: Cell<usize>,
    }

    impl Arena {
        fn new(pages: usize) -> Self {
            Self { memory: vec![0; (pages + 1) * PAGE_BYTES / 16], used: Cell::new(0) }
        }
    }

    impl Source for Arena {
        fn grow(&self, bytes: usize) -> Option<usize> {
            let used = self.used.get() + bytes;
            if used + PAGE_BYTES > self.memory.len() * 16 {
                return None;
            }
            let address = (self.memory.as_ptr() as usize).next_multiple_of(PAGE_BYTES) + self.used.get();
            self.used.set(used);
            Some(address)
        }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 8).expect("a layout")
    }

    #[test]
    fn blocks_in_use_never_overlap() {
        let heap = Heap::new(Arena::new(64));
        let mut blocks: Vec<(usize, usize)> = Vec::new();
        let mut seed = 7usize;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let bytes = 1 + (seed >> 40) % 3_000;
            if blocks.len() > 50 {
                let (address, bytes) = blocks.swap_remove((seed >> 20) % 50);
                unsafe { heap.dealloc(address as *mut u8, layout(bytes)) };
            }
            let address = unsafe { heap.alloc(layout(bytes)) } as usize;
            assert!(address != 0 && address.is_multiple_of(16));
            assert!(blocks.iter().all(|&(other, len)| address + bytes <= other || other + len <= address));
            blocks.push((address, bytes));
        }
    }

    #[test]
    fn the_same_call_again_takes_no_new_memory() {
        let heap = Heap::new(Arena::new(2));
        for _ in 0..100_000 {
            unsafe {
                let (id, list) = (heap.alloc(layout(24)), heap.alloc(layout(300)));
                assert!(!id.is_null() && !list.is_null());
                heap.dealloc(id, layout(24));
                heap.dealloc(list, layout(300));
            }
        }
        assert_eq!(heap.source.used.get(), PAGE_BYTES);
    }

    #[test]
    fn a_grown_block_keeps_its_bytes() {
        let heap = Heap::new(Arena::new(8));
        unsafe {
            let block = heap.alloc(layout(20));
            block.write_bytes(7, 20);
            assert_eq!(heap.realloc(block, layout(20), 32), block);
            let moved = heap.realloc(block, layout(32), 5_000);
            assert!((0..20).all(|at| *moved.add(at) == 7));
        }
    }

    #[test]
    fn what_no_block_holds_is_refused() {
        let heap = Heap::new(Arena::new(4));
        unsafe {
            assert!(heap.alloc(layout(5 * PAGE_BYTES)).is_null());
            assert!(heap.alloc(Layout::from_size_align(8, 64).expect("a layout")).is_null());
            assert!(!heap.alloc(layout(2 * PAGE_BYTES)).is_null());
        }
    }
}
