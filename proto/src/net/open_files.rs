//! The limit of open files: most systems give a service 1,024 at first, for the sake of old programs, and let it take
//! many more. A daemon that serves a fleet needs a descriptor for each connection.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A limit that a busy daemon may reach.
const FEW: u64 = 4096;

/// Raises the limit of open files as far as it may be raised, and says so in one line of the log.
pub fn raise_limit() {
    let before = getrlimit(Resource::Nofile);
    let known = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    match raise(before) {
        Ok(()) => {
            tracing::info!(from = known(before.current), to = known(before.maximum), "raised the limit of open files");
        }
        Err(None) => {
            tracing::debug!(limit = known(before.current), "the limit of open files is as high as it may be");
        }
        Err(Some(error)) => {
            tracing::warn!(limit = known(before.current), %error, "cannot raise the limit of open files");
        }
    }
    if getrlimit(Resource::Nofile).current.is_some_and(|limit| limit < FEW) {
        tracing::warn!(
            limit = known(before.maximum),
            "few open files are allowed: with many peers or downloads raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        );
    }
}

/// `Err(None)` if there is nothing to raise.
fn raise(before: Rlimit) -> Result<(), Option<io::Error>> {
    if before.current == before.maximum {
        return Err(None);
    }
    setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum })
        .map_err(|errno| Some(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        let low = Rlimit { current: Some(256), maximum: before.maximum };
        setrlimit(Resource::Nofile, low).unwrap();
        raise_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
        assert!(matches!(raise(getrlimit(Resource::Nofile)), Err(None)), "once is enough");
    }
}
