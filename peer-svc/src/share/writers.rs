//! Which files some program has open for writing: a file that is hashed meanwhile may be half a copy.
//!
//! Linux tells of the processes that this one may look into: those of the same user, all of them for root, and none
//! outside its container. What is not seen costs nothing but a `share --replace` by hand.

use std::{collections::HashSet, fs, path::Path};

use super::scan::identity;

/// Device and number of each file that is open for writing.
pub(super) fn open_for_writing() -> HashSet<(u64, u64)> {
    writers_below(Path::new("/proc"))
}

fn writers_below(processes: &Path) -> HashSet<(u64, u64)> {
    use std::os::unix::fs::PermissionsExt;
    /// The link to an open file may be written through if the file is open for writing; see proc_pid_fd(5).
    const OWNER_WRITES: u32 = 0o200;

    let is_process = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
    // A process, or a file of it, may be gone by the time it is looked at.
    let processes = fs::read_dir(processes).into_iter().flatten().flatten().filter(is_process);
    let links = processes.filter_map(|process| fs::read_dir(process.path().join("fd")).ok()).flatten().flatten();
    let written = links.filter(|link| link.metadata().is_ok_and(|link| link.permissions().mode() & OWNER_WRITES != 0));
    let files = written.filter_map(|link| fs::metadata(link.path()).ok()).filter(fs::Metadata::is_file);
    files.map(|file| identity(&file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_while_it_is_open_for_writing_and_not_while_it_is_only_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let writer = fs::File::create(&path).unwrap();
        let file = identity(&writer.metadata().unwrap());
        assert!(open_for_writing().contains(&file));
        drop(writer);
        let _reader = fs::File::open(&path).unwrap();
        assert!(!open_for_writing().contains(&file));
    }

    #[test]
    fn without_a_list_of_processes_nothing_is_known() {
        assert!(writers_below(Path::new("/nowhere")).is_empty());
    }
}
