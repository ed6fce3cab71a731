//! A tensor's numbers in a file, read in the order of its rows, however they lie there.
//!
//! # Flow
//! Dimensions that lie one after the other are joined, so that nearly every tensor is one line of numbers. What is
//! left of others (a transposed matrix, a slice) is read slab by slab: a slab is a part of the output that fits into
//! memory. In a slab, a line is read along the dimension whose numbers lie closest, and its numbers go where they
//! belong.
//!
//! # Guarantees
//! A slab has at most [`SLAB`] bytes, and all reads of a tensor are at most [`Layout::reads`], repeated numbers (a
//! stride of 0) included.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Bytes of a line that lies in one piece: large enough for the disk, small enough for a cache.
const PIECE: u64 = 1 << 20;
/// Bytes of other slabs: the more rows of a transposed matrix, the fewer and longer reads.
const SLAB: u64 = 32 << 20;
/// From so many bytes on between two numbers, each is read alone.
const APART: u64 = 512;

/// How a tensor lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    /// Where the first number is.
    start: u64,
    /// Bytes of a number.
    width: u64,
    /// From the outermost to the innermost; none is 1 or lies as a part of the one before it.
    dimensions: Vec<Dimension>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Dimension {
    length: u64,
    /// Bytes from one to the next.
    stride: u64,
}

/// A part of the output, which has been chosen so that it is a block in the file, too.
struct Slab {
    start: u64,
    dimensions: Vec<Dimension>,
    numbers: u64,
}

impl Layout {
    /// Of numbers of `width` bytes that begin at byte `start`; strides are in numbers. `None` for what no file holds.
    pub(super) fn new(start: u64, width: u64, shape: &[u64], strides: &[u64]) -> Option<Self> {
        let mut dimensions: Vec<Dimension> = Vec::new();
        let is_empty = shape.contains(&0);
        for (&length, &stride) in shape.iter().zip(strides).filter(|(length, _)| **length != 1 && !is_empty) {
            let stride = stride.checked_mul(width)?;
            match dimensions.last_mut() {
                Some(outer) if outer.stride == length.checked_mul(stride)? => {
                    *outer = Dimension { length: outer.length.checked_mul(length)?, stride };
                }
                _ => dimensions.push(Dimension { length, stride }),
            }
        }
        if is_empty {
            dimensions.push(Dimension { length: 0, stride: width });
        }
        let layout = Self { start, width, dimensions };
        layout.dimensions.iter().try_fold(width, |bytes, dimension| bytes.checked_mul(dimension.length))?;
        Some(layout)
    }

    /// The first byte behind the last number; `start` if there is no number.
    pub(super) fn end(&self) -> Option<u64> {
        if self.bytes() == 0 {
            return Some(self.start);
        }
        let reach = |end: u64, dimension: &Dimension| {
            end.checked_add((dimension.length - 1).checked_mul(dimension.stride)?)
        };
        self.dimensions.iter().try_fold(self.start.checked_add(self.width)?, reach)
    }

    /// Bytes of all numbers.
    pub(super) fn bytes(&self) -> u64 {
        self.dimensions.iter().map(|dimension| dimension.length).product::<u64>() * self.width
    }

    fn is_one_piece(&self) -> bool {
        match self.dimensions.as_slice() {
            [] => true,
            [line] => line.stride == self.width,
            _ => false,
        }
    }

    /// At most so many reads. Counted no further than what is more than `enough`: to count takes time, too.
    pub(super) fn reads(&self, enough: u64) -> u64 {
        if self.is_one_piece() {
            return self.bytes() / PIECE + 1;
        }
        let mut reads = 0u64;
        let mut done = 0;
        while reads <= enough
            && let Some(slab) = self.slab(done, self.most())
        {
            reads = reads.saturating_add(slab.reads(self.width));
            done += slab.numbers;
        }
        reads
    }

    /// Reads what comes after the first `done` bytes of the output into `buffer`; nothing at the end.
    pub(super) fn read(&self, file: &File, done: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
        self.read_at_most(self.most(), file, done, buffer)
    }

    /// As many bytes as are in memory at once.
    fn most(&self) -> u64 {
        if self.is_one_piece() { PIECE } else { SLAB }
    }

    fn read_at_most(&self, most: u64, file: &File, done: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clear();
        let Some(slab) = self.slab(done / self.width, most) else { return Ok(()) };
        buffer.resize((slab.numbers * self.width) as usize, 0);
        slab.read(file, self.width as usize, buffer)
    }

    /// What comes after the first `done` numbers of the output: at least one, and at most so many bytes.
    fn slab(&self, done: u64, most: u64) -> Option<Slab> {
        let total = self.bytes() / self.width;
        if done >= total {
            return None;
        }
        let most = (most / self.width).max(1);
        // Where in each dimension it begins, and the outermost of which there is room for more than one.
        let (mut start, mut rest, mut inner) = (self.start, done, total);
        for (place, dimension) in self.dimensions.iter().enumerate() {
            inner /= dimension.length;
            let index = rest / inner;
            rest %= inner;
            start += index * dimension.stride;
            if inner <= most {
                let length = (most / inner).min(dimension.length - index);
                let mut dimensions = vec![Dimension { length, ..*dimension }];
                dimensions.extend(&self.dimensions[place + 1..]);
                return Some(Slab { start, dimensions, numbers: length * inner });
            }
        }
        // A single number.
        Some(Slab { start, dimensions: Vec::new(), numbers: 1 })
    }
}

/// A dimension of a block, with the bytes from one to the next in the output.
#[derive(Clone, Copy)]
struct Axis {
    length: usize,
    from: u64,
    to: usize,
}

impl Slab {
    /// The dimensions as loops: outside those whose numbers lie far from each other.
    fn axes(&self, width: usize) -> Vec<Axis> {
        let mut to = width;
        let mut axes: Vec<Axis> = Vec::new();
        for dimension in self.dimensions.iter().rev() {
            axes.push(Axis { length: dimension.length as usize, from: dimension.stride, to });
            to *= dimension.length as usize;
        }
        axes.retain(|axis| axis.length > 1);
        axes.sort_by_key(|axis| std::cmp::Reverse(axis.from));
        axes
    }

    fn reads(&self, width: u64) -> u64 {
        let axes = self.axes(width as usize);
        let Some((line, outer)) = axes.split_last() else { return 1 };
        let lines: u64 = outer.iter().map(|axis| axis.length as u64).product();
        lines.saturating_mul(line.reads(width))
    }

    fn read(&self, file: &File, width: usize, out: &mut [u8]) -> io::Result<()> {
        let axes = self.axes(width);
        let Some((line, outer)) = axes.split_last() else {
            return file.read_exact_at(out, self.start);
        };
        let mut indices = vec![0; outer.len()];
        let mut scratch = Vec::new();
        loop {
            let places = indices.iter().zip(outer);
            let (from, to) = places.fold((self.start, 0), |(from, to), (&index, axis)| {
                (from + index as u64 * axis.from, to + index * axis.to)
            });
            line.read(file, from, width, &mut out[to..], &mut scratch)?;
            // The innermost that is not at its end goes on, those within it begin anew.
            let Some(next) = (0..outer.len()).rev().find(|&place| indices[place] + 1 < outer[place].length)
            else {
                return Ok(());
            };
            indices[next] += 1;
            indices[next + 1..].fill(0);
        }
    }
}

impl Axis {
    fn is_one_piece(&self, width: usize) -> bool {
        self.from == width as u64 && self.to == width
    }

    /// As many numbers as come with one read, where it is not one piece.
    fn together(&self, width: u64) -> usize {
        if self.from > APART { 1 } else { (PIECE / self.from.max(width)) as usize }
    }

    fn reads(&self, width: u64) -> u64 {
        if self.is_one_piece(width as usize) { 1 } else { self.length.div_ceil(self.together(width)) as u64 }
    }

    /// Reads the numbers along it, from byte `from` of the file on.
    fn read(
        &self,
        file: &File,
        from: u64,
        width: usize,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> io::Result<()> {
        if self.is_one_piece(width) {
            return file.read_exact_at(&mut out[..self.length * width], from);
        }
        if self.from > APART {
            for index in 0..self.length {
                let to = &mut out[index * self.to..][..width];
                file.read_exact_at(to, from + index as u64 * self.from)?;
            }
            return Ok(());
        }
        let together = self.together(width as u64);
        for first in (0..self.length).step_by(together) {
            let count = together.min(self.length - first);
            scratch.resize((count - 1) * self.from as usize + width, 0);
            file.read_exact_at(scratch, from + first as u64 * self.from)?;
            for index in 0..count {
                let number = &scratch[index * self.from as usize..][..width];
                out[(first + index) * self.to..][..width].copy_from_slice(number);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// Numbers of two bytes that say where they are.
    fn storage(numbers: u16) -> File {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..numbers).flat_map(u16::to_le_bytes).collect();
        file.write_all(&bytes).unwrap();
        file
    }

    /// All slabs of a layout, of at most so many bytes.
    fn read(layout: &Layout, most: u64, file: &File) -> Vec<u16> {
        let (mut all, mut buffer) = (Vec::new(), Vec::new());
        loop {
            layout.read_at_most(most, file, all.len() as u64, &mut buffer).unwrap();
            if buffer.is_empty() {
                break;
            }
            assert!(buffer.len() as u64 <= most);
            all.extend_from_slice(&buffer);
        }
        all.as_chunks().0.iter().map(|two| u16::from_le_bytes(*two)).collect()
    }

    /// The same by the definition of strides.
    fn expected(offset: u64, shape: &[u64], strides: &[u64]) -> Vec<u16> {
        let Some((length, rest)) = shape.split_first() else { return vec![offset as u16] };
        (0..*length).flat_map(|index| expected(offset + index * strides[0], rest, &strides[1..])).collect()
    }

    proptest! {
        #[test]
        fn numbers_come_in_the_order_of_rows_however_they_lie(
            offset in 0u64..100,
            most in 2u64..200,
            dimensions in prop::collection::vec((0u64..5, prop::sample::select(vec![0u64, 1, 2, 3, 5, 12, 60, 300])), 0..5),
        ) {
            let (shape, strides): (Vec<_>, Vec<_>) = dimensions.into_iter().unzip();
            let layout = Layout::new(2 * offset, 2, &shape, &strides).unwrap();
            let expected = expected(offset, &shape, &strides);
            let last = expected.iter().max().map_or(2 * offset, |&last| 2 * u64::from(last) + 2);
            prop_assert_eq!(layout.end(), Some(last));
            prop_assert_eq!(layout.bytes(), 2 * expected.len() as u64);
            prop_assert_eq!(&read(&layout, most, &storage(6200)), &expected);
            prop_assert_eq!(read(&layout, layout.most(), &storage(6200)), expected);
        }
    }

    #[test]
    fn long_lines_are_read_piece_by_piece() {
        let numbers = 3 * PIECE as usize;
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..numbers).flat_map(|number| (number as u16).to_le_bytes()).collect();
        file.write_all(&bytes).unwrap();
        for (length, stride) in [(numbers as u64, 1), (numbers as u64 / 2, 2), (numbers as u64 / 255, 255)] {
            let layout = Layout::new(0, 2, &[length], &[stride]).unwrap();
            let expected = (0..length).map(|index| (index * stride) as u16);
            assert!(read(&layout, layout.most(), &file).into_iter().eq(expected), "{length} {stride}");
        }
    }

    #[test]
    fn dimensions_that_lie_one_after_the_other_are_one() {
        for (shape, strides, one_piece) in [
            (vec![], vec![], true),
            (vec![7], vec![1], true),
            (vec![2, 3, 4], vec![12, 4, 1], true),
            // The stride of a dimension of one says nothing.
            (vec![2, 1, 4], vec![4, 99, 1], true),
            (vec![0, 4], vec![7, 3], true),
            (vec![4, 3], vec![1, 4], false),
            (vec![4, 3], vec![6, 1], false),
            (vec![4, 3], vec![0, 1], false),
        ] {
            let layout = Layout::new(0, 4, &shape, &strides).unwrap();
            assert_eq!(layout.is_one_piece(), one_piece, "{shape:?} {strides:?}");
        }
    }

    #[test]
    fn large_tensors_are_read_in_few_pieces_whether_transposed_or_not() {
        let reads =
            |shape: [u64; 2], strides: [u64; 2]| Layout::new(0, 4, &shape, &strides).unwrap().reads(u64::MAX);
        // The words of XLM-RoBERTa, 1 GB.
        assert_eq!(reads([250_002, 1024], [1024, 1]), 977);
        // Each slab has 33 lines of the one, or 8192 of the other.
        assert_eq!(reads([1024, 250_002], [1, 1024]), 32 * 250_002);
        assert_eq!(reads([250_002, 1024], [1, 250_002]), 31 * 1024);
        // A column, each number of it alone.
        assert_eq!(reads([250_002, 1], [1024, 1]), 250_002);
        // 2097 numbers, one in 500 bytes, come together; of a number that is repeated, as many as a read has room for.
        assert_eq!(reads([1 << 20, 1], [125, 1]), 501);
        assert_eq!(reads([1 << 22, 1], [0, 1]), 16);
    }

    #[test]
    fn reads_are_counted_no_further_than_is_enough() {
        let layout = Layout::new(0, 1, &[1 << 54], &[256]).unwrap();
        let reads = layout.reads(1000);
        assert!((1001..100_000_000).contains(&reads), "{reads}");
    }

    #[test]
    fn what_no_file_holds_is_none() {
        let big = 1 << 40;
        assert!(Layout::new(0, 4, &[big, big], &[1, 1]).is_none());
        assert!(Layout::new(0, 4, &[2], &[u64::MAX / 2]).is_none());
        assert!(Layout::new(0, 4, &[2, big], &[1, big]).is_none());
        assert_eq!(Layout::new(u64::MAX - 8, 4, &[3], &[1]).unwrap().end(), None);
        // Nothing is nothing, whatever its other sizes are.
        assert_eq!(Layout::new(8, 4, &[big, 0, big], &[1, 1, 1]).unwrap().end(), Some(8));
    }
}
