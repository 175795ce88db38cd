//! What this machine runs out of: no fault of another peer, of a file or of the tracker. It is waited for with a
//! pause, and said once in a while.

use std::{
    error::Error,
    fmt, io,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

/// Between two attempts.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// The log hears of the same shortage this often.
const SAID: Duration = Duration::from_secs(60);

/// Something that this machine, or this process, has no more of for the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shortage {
    /// Files and connections of this process.
    Files,
    /// Files and connections of the machine.
    SystemFiles,
    /// Local ports, or a local address to connect from.
    Ports,
    /// Memory of the kernel.
    Memory,
}

impl Shortage {
    /// What an error of the system says.
    pub(crate) fn of_io(error: &io::Error) -> Option<Self> {
        match Errno::from_raw_os_error(error.raw_os_error()?) {
            Errno::MFILE => Some(Self::Files),
            Errno::NFILE => Some(Self::SystemFiles),
            Errno::ADDRNOTAVAIL => Some(Self::Ports),
            Errno::NOMEM | Errno::NOBUFS => Some(Self::Memory),
            _ => None,
        }
    }

    /// What an error or one of its causes says.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(shortage) = error.downcast_ref::<io::Error>().and_then(Self::of_io) {
                return Some(shortage);
            }
            next = error.source();
        }
        None
    }

    /// Says it in the log, unless that was said a moment ago. `what` waits for it.
    pub(crate) fn say(self, what: &str) {
        static SAID_AT: Mutex<[Option<Instant>; 4]> = Mutex::new([None; 4]);
        let mut said = SAID_AT.lock().unwrap_or_else(PoisonError::into_inner);
        let (said, now) = (&mut said[self as usize], Instant::now());
        if said.is_none_or(|at| now.saturating_duration_since(at) >= SAID) {
            *said = Some(now);
            tracing::warn!("{self}; waiting to {what}");
        }
    }
}

/// For a person: what is short, and what to do.
impl fmt::Display for Shortage {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Files => {
                "this peer has reached its limit of open files: raise it (ulimit -n, LimitNOFILE=) if that happens often"
            }
            Self::SystemFiles => "this machine has reached its limit of open files: raise fs.file-max",
            Self::Ports => "this machine has no free local port or no local address for a connection: see net.ipv4.ip_local_port_range, and ip address",
            Self::Memory => "this machine is out of memory",
        })
    }
}

/// Does something that may need what is short, again and again until there is enough of it. Blocks.
pub(crate) fn wait_out<T>(
    what: &str,
    stop: &CancellationToken,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match attempt() {
            Err(error) if !stop.is_cancelled() => match Shortage::of_io(&error) {
                Some(shortage) => shortage.say(what),
                None => return Err(error),
            },
            done => return done,
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_found_below_the_errors_of_a_connection() {
        #[derive(Debug, thiserror::Error)]
        #[error("transport error")]
        struct Transport(#[source] io::Error);
        for (errno, expected) in [
            (Errno::MFILE, Some(Shortage::Files)),
            (Errno::NFILE, Some(Shortage::SystemFiles)),
            (Errno::ADDRNOTAVAIL, Some(Shortage::Ports)),
            (Errno::NOBUFS, Some(Shortage::Memory)),
            (Errno::CONNREFUSED, None),
        ] {
            let status = tonic::Status::from_error(Box::new(Transport(errno.into())));
            assert_eq!(Shortage::of(&status), expected, "{status:?}");
        }
        assert_eq!(Shortage::of(&tonic::Status::unavailable("Too many open files")), None, "so says another machine");
    }

    #[test]
    fn what_is_short_is_waited_for_and_other_errors_are_not() {
        let stop = CancellationToken::new();
        let mut answers = vec![Ok(7), Err(Errno::MFILE.into())];
        assert_eq!(wait_out("test", &stop, || answers.pop().unwrap()).unwrap(), 7);
        assert!(wait_out("test", &stop, || Err::<(), _>(Errno::ACCESS.into())).is_err());
        stop.cancel();
        assert!(wait_out("test", &stop, || Err::<(), _>(Errno::MFILE.into())).is_err(), "the daemon stops");
    }
}
