//! What a measurement ran on.

use std::{fs, path::Path, thread, time::SystemTime};

/// The processor's name.
pub(crate) fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == "model name");
    name.map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.trim().to_owned())
}

/// How many cores this process may use.
pub(crate) fn cores() -> String {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if cores == 1 { "1 core".to_owned() } else { format!("{cores} cores") }
}

/// The date, in UTC.
pub(crate) fn today() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now.split('T').next().unwrap_or_default().to_owned()
}

/// Free bytes of the file system that a folder is on.
pub(crate) fn free(folder: &Path) -> u64 {
    let system = rustix::fs::statvfs(folder).expect("the file system tells");
    system.f_bavail * system.f_frsize
}
