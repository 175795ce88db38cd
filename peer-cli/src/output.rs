//! stdout, written so that `| head` is quiet.
//!
//! A reader that leaves is no failure: what follows is dropped, and the command goes on to its true exit
//! code. Any other error (a full disk behind `>`) is one.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

/// The process's stdout.
#[derive(Debug, Default)]
pub(crate) struct Out {
    closed: bool,
}

impl Out {
    /// Whether the reader has left, so that more output is wasted work.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes text as it is, and flushes.
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            other => other,
        }
    }

    /// Writes a line.
    pub(crate) fn line(&mut self, line: &str) -> io::Result<()> {
        self.text(&format!("{line}\n"))
    }

    /// Writes a value as one line of JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_string(value)?;
        line.push('\n');
        self.text(&line)
    }
}
