//! `status --watch` on a terminal: the machine's rates, its downloads, and why the chosen one takes as long as it does.
//!
//! | module | is |
//! |---|---|
//! | [`state`] | what is shown; pure |
//! | [`picture`] | how |
//!
//! Invariant: the terminal is given back as it was, however this ends; a panic included.

mod picture;
mod state;

use std::time::Duration;

use drizzle_proto::wire;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use self::state::{Press, State, Told};
use crate::{
    connect::Daemon,
    exit::{Exit, Failure},
};

/// How often the daemon is asked.
const EVERY: Duration = Duration::from_secs(1);

/// What a person did.
enum Did {
    Pressed(Press),
    Resized,
    Quit,
    Interrupted,
}

/// Shows it until a key ends it, or the daemon does.
pub(crate) async fn run(daemon: &Daemon) -> Result<Exit, Failure> {
    let cannot = |error| Failure::new(Exit::Other, format!("cannot use this terminal: {error}"));
    let mut terminal = Terminal(ratatui::try_init().map_err(cannot)?);
    let mut keys = keys();
    let (mut state, mut ticks) = (State::default(), interval(EVERY));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => state.told(ask(daemon).await?),
            did = keys.recv() => match did {
                Some(Did::Pressed(press)) => state.pressed(press),
                Some(Did::Resized) => {}
                Some(Did::Interrupted) => return Ok(Exit::Interrupted),
                // Without a keyboard it cannot be ended otherwise than by a signal.
                Some(Did::Quit) | None => return Ok(Exit::Done),
            },
        }
        terminal.0.draw(|frame| picture::draw(frame, &state)).map_err(cannot)?;
    }
}

/// Given back when dropped.
struct Terminal(ratatui::DefaultTerminal);

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn ask(daemon: &Daemon) -> Result<Told, Failure> {
    let mut control = daemon.control.clone();
    let status = daemon.answer(control.status(wire::StatusRequest {})).await?;
    let mut control = daemon.control.clone();
    let limits = daemon.answer(control.limits(wire::LimitsRequest::default())).await?;
    // An older daemon knows none.
    let reasons = daemon.control.clone().explain(wire::ExplainRequest::default()).await;
    let reasons = reasons.map(|answer| answer.into_inner().explanations).unwrap_or_default();
    Ok(Told { status, limits, reasons })
}

/// Keys come from a thread of their own, which waits for them and ends with the program.
fn keys() -> mpsc::Receiver<Did> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if let Some(did) = meant(&event)
                && sender.blocking_send(did).is_err()
            {
                return;
            }
        }
    });
    receiver
}

fn meant(event: &Event) -> Option<Did> {
    let Event::Key(key) = event else { return matches!(event, Event::Resize(..)).then_some(Did::Resized) };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    Some(match key.code {
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Did::Interrupted,
        KeyCode::Char('q') | KeyCode::Esc => Did::Quit,
        KeyCode::Up | KeyCode::Char('k') => Did::Pressed(Press::Up),
        KeyCode::Down | KeyCode::Char('j') => Did::Pressed(Press::Down),
        KeyCode::Home => Did::Pressed(Press::First),
        KeyCode::End => Did::Pressed(Press::Last),
        _ => return None,
    })
}
