//! What is noted for those who look later: who did what, from where, and what was refused and why.
//!
//! Each entry is a line of the log under the target `drizzle::audit`, and a line of JSON in the file of `--audit-log`. The
//! file is appended to, and opened anew when it was moved away, as log rotation does. What cannot be written is said in the
//! log. An entry is written before the call that makes it is answered; calls that make none never wait for its disk.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use drizzle_proto::net::caller::{Accepted, Caller};
use serde::Serialize;

use super::denied::Denied;

/// Refusals of one second beyond this are counted, not listed: whoever is refused must not fill a disk.
const REFUSALS: u32 = 50;

/// Where entries go.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    file: Option<Mutex<Opened>>,
    refusals: Mutex<Refusals>,
    denials: [AtomicU64; Denied::REASONS.len()],
}

#[derive(Debug)]
struct Opened {
    path: PathBuf,
    file: File,
    failed: bool,
}

#[derive(Debug, Default)]
struct Refusals {
    second: Option<Instant>,
    listed: u32,
    unlisted: u32,
}

/// Who did something, as far as that is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct By {
    pub(crate) caller: Caller,
    pub(crate) from: Option<IpAddr>,
}

impl By {
    /// Whoever made a request.
    pub(crate) fn of(extensions: &tonic::Extensions) -> Self {
        Self { caller: Caller::of(extensions), from: extensions.get::<Accepted>().and_then(Accepted::source) }
    }

    fn who(&self) -> String {
        match self.caller {
            Caller::Local => "operator".to_owned(),
            Caller::Plain | Caller::Unknown => "unknown".to_owned(),
            Caller::Certified(certified) => {
                self.caller.peer().map_or_else(|| certified.to_string(), |peer| peer.to_string())
            }
        }
    }
}

#[derive(Serialize)]
struct Entry<'a> {
    time: String,
    event: &'a str,
    who: String,
    from: Option<IpAddr>,
    what: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    why: &'a str,
}

impl Audit {
    /// Into the log, and a file if there is one.
    pub(crate) fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let file = path.map(|path| {
            let file = open(&path)?;
            Ok::<_, io::Error>(Mutex::new(Opened { path, file, failed: false }))
        });
        Ok(Self { file: file.transpose()?, ..Self::default() })
    }

    /// Something was done.
    pub(crate) fn done(&self, event: &str, by: By, what: &str) {
        let who = by.who();
        tracing::info!(target: "drizzle::audit", event, who, what);
        self.write(event, by, what, "");
    }

    /// A caller was refused what it may not do.
    pub(crate) fn denied(&self, by: By, what: &str, denied: &Denied) {
        self.refused(by, what, denied.reason(), &denied.to_string());
    }

    /// How often callers were refused, by reason.
    pub(crate) fn denials(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.denials.iter().map(|count| count.load(Ordering::Relaxed));
        Denied::REASONS.into_iter().zip(counts)
    }

    /// Something was refused, for one of [`Denied::REASONS`].
    pub(crate) fn refused(&self, by: By, what: &str, reason: &str, why: &str) {
        if let Some(at) = Denied::REASONS.iter().position(|known| *known == reason) {
            self.denials[at].fetch_add(1, Ordering::Relaxed);
        }
        let unlisted = {
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let mut over = 0;
            if refusals.second.is_none_or(|second| now.duration_since(second) >= Duration::from_secs(1)) {
                over = refusals.unlisted;
                *refusals = Refusals { second: Some(now), ..Refusals::default() };
            }
            if refusals.listed >= REFUSALS {
                refusals.unlisted += 1;
                return;
            }
            refusals.listed += 1;
            over
        };
        if unlisted > 0 {
            self.write("refusals", By { caller: Caller::Local, from: None }, &unlisted.to_string(), "not listed");
        }
        let who = by.who();
        tracing::info!(target: "drizzle::audit", event = "refused", who, what, why);
        self.write("refused", by, what, why);
    }

    fn write(&self, event: &str, by: By, what: &str, why: &str) {
        let Some(file) = &self.file else { return };
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let entry = Entry { time, event, who: by.who(), from: by.from, what, why };
        let Ok(mut line) = serde_json::to_vec(&entry) else { return };
        line.push(b'\n');
        let mut opened = file.lock().unwrap_or_else(PoisonError::into_inner);
        let Opened { path, file, failed } = &mut *opened;
        let moved = std::fs::metadata(&*path).ok().map(|there| there.ino()) != file.metadata().ok().map(|it| it.ino());
        if moved && let Ok(new) = open(path) {
            *file = new;
        }
        // In one write, so that lines of a crash are whole or not there.
        if let Err(error) = file.write_all(&line) {
            if !std::mem::replace(failed, true) {
                tracing::error!(path = %path.display(), %error, "the audit log cannot be written");
            }
        } else {
            *failed = false;
        }
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BY: By = By { caller: Caller::Unknown, from: None };

    fn lines(path: &std::path::Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn entries_are_lines_of_json_and_follow_a_file_that_is_moved_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let audit = Audit::open(Some(path.clone())).unwrap();
        let from = Some("10.0.0.1".parse().unwrap());
        audit.refused(By { from, ..BY }, "read \"a\nb\"", "not_granted", "not granted");
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        audit.done("grant", By { caller: Caller::Local, from: None }, "reader of *");
        let [old, new] = [lines(&dir.path().join("old")), lines(&path)];
        assert_eq!(
            (&old[0]["event"], &old[0]["who"], &old[0]["from"]),
            (&"refused".into(), &"unknown".into(), &"10.0.0.1".into())
        );
        assert_eq!((&old[0]["what"], &old[0]["why"]), (&"read \"a\nb\"".into(), &"not granted".into()));
        assert_eq!((old.len(), new.len(), &new[0]["who"]), (1, 1, &"operator".into()));
    }

    #[test]
    fn refusals_do_not_fill_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let audit = Audit::open(Some(path.clone())).unwrap();
        (0..10_000).for_each(|_| audit.denied(BY, "read", &Denied::NoIdentity));
        assert_eq!(audit.denials().next(), Some(("no_identity", 10_000)), "each is counted");
        assert!(lines(&path).len() < 10 * REFUSALS as usize);
    }
}
