//! Where a file has data, and where only holes: what was never written needs no reading.
//!
//! The extents are listed once per file. Asking the file system anew for each chunk is quadratic on some
//! (tmpfs walks every reserved page on the way to the next data).

use std::{fs::File, ops::Range};

use rustix::fs::{SeekFrom, seek};

/// The parts of a file that hold data, ascending and disjoint.
#[derive(Debug)]
pub(crate) struct Extents(Vec<Range<u64>>);

impl Extents {
    /// Lists them. A file system that cannot tell has one extent: the whole file.
    pub(crate) fn of(file: &File, size: u64) -> Self {
        Self(list(file, size).unwrap_or_else(|_| std::iter::once(0..size).collect()))
    }

    /// Whether there may be data in `len` bytes from `start` on.
    pub(crate) fn has_data(&self, start: u64, len: u64) -> bool {
        let next = self.0.partition_point(|extent| extent.end <= start);
        self.0.get(next).is_some_and(|extent| extent.start < start + len)
    }
}

fn list(file: &File, size: u64) -> rustix::io::Result<Vec<Range<u64>>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data from there to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        at = seek(file, SeekFrom::Hole(start))?;
        extents.push(start..at);
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn written_bytes_are_never_taken_for_a_hole() {
        const BLOCK: u64 = 1 << 20;
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * BLOCK).unwrap();
        file.write_all_at(b"x", 2 * BLOCK + 5).unwrap();
        file.write_all_at(b"x", 5 * BLOCK - 1).unwrap();
        let extents = Extents::of(&file, 8 * BLOCK);
        for (block, written) in [(2, true), (4, true)] {
            assert_eq!(extents.has_data(block * BLOCK, BLOCK), written, "block {block}");
        }
        // A file system may know no holes, but it must not see data behind the end.
        assert!(!extents.has_data(8 * BLOCK, BLOCK));
        assert!(!Extents::of(&file, 0).has_data(0, BLOCK));
    }

    #[test]
    fn ranges_are_looked_up_at_their_edges() {
        let extents = Extents(vec![10..20, 30..40]);
        for (start, len, has) in
            [(0, 10, false), (0, 11, true), (19, 1, true), (20, 10, false), (20, 11, true), (40, 9, false)]
        {
            assert_eq!(extents.has_data(start, len), has, "{start}+{len}");
        }
    }
}
