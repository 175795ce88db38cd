//! The terminal that bars are painted on, such that it may write something of its own in between: a typed Ctrl-C
//! shows as `^C` where the cursor is.
//!
//! indicatif fills up each line with blanks and leaves the cursor at the right edge, from where the next line begins
//! by itself. What the terminal echoes there begins one as well, and from then on the picture is one line lower than
//! indicatif believes: one line of it is never cleared. Here a line ends with a line break instead, and after each
//! picture the cursor stands at the left edge of its last line.

use std::{
    io,
    sync::{Mutex, PoisonError},
};

use console::Term;
use indicatif::{ProgressDrawTarget, TermLike};

/// Clears what stands to the right of the cursor.
const CLEAR_REST: &str = "\u{1b}[K";

/// Paints on stdout, at most so many times a second.
pub(crate) fn target(hz: u8) -> ProgressDrawTarget {
    ProgressDrawTarget::term_like_with_hz(
        Box::new(Screen { term: Term::buffered_stdout(), next: Mutex::default() }),
        hz,
    )
}

/// What indicatif writes next. It writes each line as two texts, both of them possibly empty: what stands in it, and
/// the blanks that fill it up.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The first line of a picture.
    #[default]
    First,
    /// The blanks of a line.
    Blanks,
    /// A line below another one.
    Below,
}

#[derive(Debug)]
struct Screen {
    term: Term,
    next: Mutex<Next>,
}

impl Screen {
    /// What indicatif writes now; `then` comes after it.
    fn turn(&self, then: impl FnOnce(Next) -> Next) -> Next {
        // No change of it can panic half-way.
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let now = *next;
        *next = then(now);
        now
    }

    /// A new picture begins where the cursor is.
    fn anew(&self) {
        self.turn(|_| Next::First);
    }
}

/// What to write for a text of indicatif's.
fn written(now: Next, text: &str) -> String {
    match now {
        Next::First => text.to_owned(),
        Next::Blanks => CLEAR_REST.to_owned(),
        Next::Below => format!("\r\n{text}"),
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        // A line that fills the last column leaves the cursor beyond it, where the rest cannot be cleared.
        self.term.size().1.saturating_sub(1).max(1)
    }

    fn height(&self) -> u16 {
        self.term.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.anew();
        self.term.move_cursor_up(n)
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.anew();
        self.term.move_cursor_down(n)
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.term.move_cursor_right(n)
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.term.move_cursor_left(n)
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.anew();
        self.term.write_line(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        let now = self.turn(|now| if now == Next::Blanks { Next::Below } else { Next::Blanks });
        self.term.write_str(&written(now, text))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.anew();
        self.term.clear_line()
    }

    fn flush(&self) -> io::Result<()> {
        self.anew();
        self.term.write_str("\r")?;
        self.term.flush()
    }
}
