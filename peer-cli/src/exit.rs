//! How a command ends: the one table from status codes and failure kinds to exit codes, and the
//! failure that carries what to tell the person.

use std::{fmt, io};

use drizzle_proto::wire::{self, Offence, download_failed::Kind};
use tonic::{Code, Status};

use crate::format::{chunks, clean};

/// The exit codes, for `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done
  1    anything else
  2    usage: a malformed option, name, path, chunk list or size
  3    no such file, path or transfer; nothing to share
  4    integrity: no honest holder of some chunk; a file that is not the registered one
  5    the daemon or the tracker cannot be reached
  6    the destination exists with other content
  7    timed out: no peer serves the missing chunks
  8    not permitted: the path is not one that the daemon may use for its callers
       (--allow-path), its socket may not be opened, the name is another peer's, the
       tracker did not grant it, or it is not signed by a trusted key
  130  interrupted (Ctrl-C); a download is cancelled, its chunks are kept
  143  terminated (SIGTERM); likewise";

/// What the process ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    Other = 1,
    Usage = 2,
    NoSuchFile = 3,
    Integrity = 4,
    Unreachable = 5,
    DestinationExists = 6,
    TimedOut = 7,
    NotPermitted = 8,
    Interrupted = 130,
    Terminated = 143,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        self as u8
    }
}

impl From<Code> for Exit {
    fn from(code: Code) -> Self {
        match code {
            Code::Ok => Self::Done,
            Code::InvalidArgument => Self::Usage,
            Code::NotFound => Self::NoSuchFile,
            Code::DataLoss => Self::Integrity,
            Code::Unavailable => Self::Unreachable,
            Code::AlreadyExists => Self::DestinationExists,
            Code::DeadlineExceeded => Self::TimedOut,
            Code::PermissionDenied => Self::NotPermitted,
            _ => Self::Other,
        }
    }
}

impl From<Kind> for Exit {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Integrity => Self::Integrity,
            Kind::Timeout => Self::TimedOut,
            Kind::DestinationExists => Self::DestinationExists,
            Kind::Shutdown => Self::Unreachable,
            Kind::Cancelled | Kind::Storage | Kind::Withdrawn | Kind::Internal | Kind::Unspecified => Self::Other,
        }
    }
}

/// Why a command did not do what was asked, and what to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) reason: String,
    pub(crate) hint: Option<String>,
    /// Missing chunks, after a download.
    pub(crate) chunks: wire::ChunkRanges,
    /// Peers that misbehaved, after a download.
    pub(crate) blamed: Vec<wire::Blame>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, reason: impl Into<String>) -> Self {
        Self { exit, reason: reason.into(), hint: None, chunks: wire::ChunkRanges::default(), blamed: Vec::new() }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The hint for one way to fail, unless there is one already.
    pub(crate) fn hint_if(self, exit: Exit, hint: impl Into<String>) -> Self {
        if self.exit == exit && self.hint.is_none() { self.hint(hint) } else { self }
    }

    /// What the daemon answered.
    pub(crate) fn from_status(status: &Status) -> Self {
        let reason = if status.message().is_empty() { status.code().description() } else { status.message() };
        let failure = Self::new(status.code().into(), reason);
        if status.code() == Code::Unimplemented {
            return failure.hint("The daemon is older than this peer-cli: replace peer-svc as well.");
        }
        failure
            // Of a destination that is taken the daemon itself says what to do.
            .hint_if(Exit::Unreachable, "`peer-cli status` shows which tracker the daemon uses.")
    }

    /// How a download ended badly.
    pub(crate) fn from_download(name: &str, failed: wire::DownloadFailed) -> Self {
        let kind = failed.kind();
        let hint = match kind {
            Kind::Integrity => Some(format!(
                "Nothing was put in place. Have the blamed peers share the true file again, or start a peer that has \
                 it, then run the same command: verified chunks are kept. `peer-cli locations {name}` shows which peer holds what."
            )),
            Kind::Timeout => Some(format!(
                "Start a peer that has these chunks, then run the same command: verified chunks are kept. \
                 `peer-cli locations {name}` shows which peer holds what; --timeout waits longer."
            )),
            Kind::DestinationExists => Some("Move it away, or choose another place with -o.".to_owned()),
            Kind::Withdrawn => Some(format!("`peer-cli files {name}` shows whether the name is still there.")),
            Kind::Shutdown => Some(
                "Once `peer-svc` runs again, the download goes on by itself; the same command follows it.".to_owned(),
            ),
            Kind::Cancelled => Some("Run the same command to go on from there.".to_owned()),
            // The daemon says what to do.
            Kind::Storage | Kind::Internal | Kind::Unspecified => None,
        };
        let reason = if failed.reason.is_empty() { default_reason(kind).to_owned() } else { failed.reason };
        let chunks = failed.chunks.unwrap_or_default();
        Self { exit: kind.into(), reason, hint, chunks, blamed: failed.blamed }
    }
}

fn default_reason(kind: Kind) -> &'static str {
    match kind {
        Kind::Integrity => "every holder's bytes are wrong",
        Kind::Timeout => "no peer serves the missing chunks",
        Kind::Cancelled => "the transfer was cancelled",
        Kind::DestinationExists => "the destination exists with other content",
        Kind::Storage => "the file cannot be written",
        Kind::Withdrawn => "the file was withdrawn",
        Kind::Shutdown => "the daemon shuts down",
        Kind::Internal => "internal error: see the log of peer-svc",
        Kind::Unspecified => "the daemon gave no reason",
    }
}

/// stdout cannot be written, and not because its reader left.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(Exit::Other, format!("cannot write to standard output: {error}"))
    }
}

/// For a person: the reason, the peers to blame, what to do next; lines that end with a newline.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "peer-cli: {}", clean(&self.reason))?;
        // After an interruption missing chunks are no news.
        let interrupted = matches!(self.exit, Exit::Interrupted | Exit::Terminated);
        if !interrupted && !self.chunks.ranges.is_empty() {
            writeln!(f, "  missing: {}", chunks(&self.chunks))?;
        }
        for blame in &self.blamed {
            writeln!(f, "  {}", blame_line(blame))?;
        }
        match &self.hint {
            Some(hint) => writeln!(f, "{}", clean(hint)),
            None => Ok(()),
        }
    }
}

/// `HOST:PORT: wrong bytes (chunks 3,7-9)`.
pub(crate) fn blame_line(blame: &wire::Blame) -> String {
    let offended = blame.chunks.as_ref().filter(|offended| !offended.ranges.is_empty());
    let which = offended.map_or_else(String::new, |offended| format!(" ({})", chunks(offended)));
    format!("{}: {}{which}", clean(&blame.peer), offence(blame))
}

/// What a holder did, in words.
pub(crate) fn offence(blame: &wire::Blame) -> &'static str {
    match blame.offence() {
        Offence::WrongBytes => "wrong bytes",
        Offence::Changed => "changed file",
        Offence::Stalled => "stalled",
        Offence::BrokeOff => "broke off",
        Offence::Refused => "refused",
        Offence::NotHeld => "does not hold it",
        Offence::Gone => "its file is no longer there",
        Offence::Unreachable => "unreachable",
        Offence::OtherPeer => "another peer answers there; set --advertise on both",
        Offence::OwnAddress => "that is this peer's own address; set --advertise on both",
        Offence::Unspecified => "unknown offence",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_code() {
        for exit in [
            Exit::Done,
            Exit::Other,
            Exit::Usage,
            Exit::NoSuchFile,
            Exit::Integrity,
            Exit::Unreachable,
            Exit::DestinationExists,
            Exit::TimedOut,
            Exit::NotPermitted,
            Exit::Interrupted,
            Exit::Terminated,
        ] {
            assert!(HELP.contains(&format!("\n  {:<4} ", exit.code())), "{exit:?}");
        }
    }

    #[test]
    fn a_failure_tells_who_why_and_what_next() {
        let range = |first, last| Some(wire::ChunkRanges { ranges: vec![wire::ChunkRange { first, last }] });
        let failed = wire::DownloadFailed {
            kind: Kind::Integrity.into(),
            reason: "no honest holder\u{1b}[2J".into(),
            chunks: range(3, 5),
            blamed: vec![wire::Blame { peer: "h:1".into(), offence: Offence::WrongBytes.into(), chunks: range(3, 3) }],
        };
        let failure = Failure::from_download("a", failed);
        assert_eq!(failure.exit, Exit::Integrity);
        let text = failure.to_string();
        assert!(text.contains("missing: chunks 3-5\n"), "{text}");
        assert!(text.contains("h:1: wrong bytes (chunk 3)\n"), "{text}");
        assert!(text.contains("peer-cli locations a"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
