//! What the screen shows: the latest that the daemon told, what was told before of the rates, and which download is chosen.
//!
//! Pure: answers and keys go in, rows come out. What holds (each line has a test):
//! - running downloads come first, then those that ended, the latest first; each name has one row;
//! - the choice stays with a download as rows come and go, and is always one of them;
//! - of an older daemon, which tells no reasons, the running downloads are shown all the same.

use std::collections::VecDeque;

use drizzle_proto::wire::{self, LimitedBy, explanation};

use crate::{figures, reasons};

/// Seconds of rates that are kept: as many as the widest screen shows.
const KEPT: usize = 512;

/// What was asked for at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) status: wire::StatusResponse,
    pub(crate) limits: wire::LimitsResponse,
    /// Of downloads that run, and that ended lately.
    pub(crate) reasons: Vec<wire::Explanation>,
}

/// A download in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) percent: u64,
    pub(crate) stored: u64,
    pub(crate) total: u64,
    /// Bytes a second that come of it; none if it is over.
    pub(crate) rate: Option<u64>,
    pub(crate) millis: u64,
    /// What limits it, or how it ended.
    pub(crate) what: String,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Press {
    Up,
    Down,
    First,
    Last,
}

/// All that is shown.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) told: Told,
    /// Bytes a second, the latest last.
    pub(crate) came: VecDeque<u64>,
    pub(crate) went: VecDeque<u64>,
    chosen: Option<String>,
}

impl State {
    /// The daemon told this.
    pub(crate) fn told(&mut self, told: Told) {
        for (kept, now) in [(&mut self.came, told.limits.down_rate), (&mut self.went, told.limits.up_rate)] {
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(now);
        }
        self.told = told;
    }

    /// The downloads, in order.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let running = |reasons: &&wire::Explanation| reasons.state() == explanation::State::Running;
        let Told { status, reasons, .. } = &self.told;
        let explained = |name: &str| reasons.iter().any(|reasons| reasons.name == name);
        // Just begun, or told by an older daemon.
        let bare = status.transfers.iter().filter(|transfer| !explained(name_of(transfer))).map(of_transfer);
        let mut rows: Vec<Row> = reasons.iter().filter(running).map(of_reasons).chain(bare).collect();
        rows.extend(reasons.iter().filter(|reasons| !running(reasons)).map(of_reasons));
        rows
    }

    /// Which row is chosen.
    pub(crate) fn chosen(&self, rows: &[Row]) -> Option<usize> {
        let at = self.chosen.as_ref().and_then(|name| rows.iter().position(|row| row.name == *name));
        at.or((!rows.is_empty()).then_some(0))
    }

    /// A key was pressed.
    pub(crate) fn pressed(&mut self, press: Press) {
        let rows = self.rows();
        let Some(at) = self.chosen(&rows) else { return };
        let last = rows.len() - 1;
        let at = match press {
            Press::Up => at.saturating_sub(1),
            Press::Down => (at + 1).min(last),
            Press::First => 0,
            Press::Last => last,
        };
        self.chosen = Some(rows[at].name.clone());
    }

    /// Why the download of a name takes as long as it does, in words.
    pub(crate) fn why(&self, name: &str) -> Option<String> {
        self.told.reasons.iter().find(|reasons| reasons.name == name).map(reasons::text)
    }
}

fn name_of(transfer: &wire::Transfer) -> &str {
    transfer.file.as_ref().map_or("", |file| &file.name)
}

fn percent(stored: u64, total: u64, is_done: bool) -> u64 {
    match total {
        0 => 100 * u64::from(is_done),
        // Not 100 before it is.
        _ => (u128::from(stored.min(total)) * 100 / u128::from(total)).try_into().unwrap_or(100),
    }
}

fn of_reasons(reasons: &wire::Explanation) -> Row {
    let is_running = reasons.state() == explanation::State::Running;
    let is_done = reasons.state() == explanation::State::Done;
    let what = match reasons.state() {
        explanation::State::Done => "done".to_owned(),
        explanation::State::Failed => format!("failed: {}", reasons.failure),
        _ => limits(reasons.limited_by()),
    };
    Row {
        name: reasons.name.clone(),
        percent: percent(reasons.bytes_stored, reasons.bytes_wanted, is_done),
        stored: reasons.bytes_stored,
        total: reasons.bytes_wanted,
        rate: is_running.then(|| reasons.holders.iter().map(|holder| holder.rate).sum()),
        millis: reasons.elapsed_millis,
        what,
    }
}

fn of_transfer(transfer: &wire::Transfer) -> Row {
    let stored = transfer.progress.as_ref().map_or(0, |progress| progress.bytes_stored);
    let by = transfer.progress.as_ref().map_or(LimitedBy::Unspecified, wire::DownloadProgress::limited_by);
    Row {
        name: name_of(transfer).to_owned(),
        percent: percent(stored, transfer.bytes_wanted, false),
        stored,
        total: transfer.bytes_wanted,
        rate: None,
        millis: transfer.elapsed_millis,
        what: limits(by),
    }
}

fn limits(by: LimitedBy) -> String {
    figures::limited_by(by).map_or_else(|| "begins".to_owned(), |by| format!("limited by {by}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn reasons(name: &str, state: explanation::State, stored: u64) -> wire::Explanation {
        let holder = wire::HolderSeen { peer: "h:1".into(), rate: 1 << 20, full: true, ..Default::default() };
        wire::Explanation {
            name: name.into(),
            state: state.into(),
            failure: if state == explanation::State::Failed { "no peer holds chunk 4".into() } else { String::new() },
            elapsed_millis: 9000,
            bytes_wanted: 100 << 20,
            bytes_stored: stored << 20,
            limited_by: LimitedBy::Source.into(),
            shares: vec![wire::LimitShare { by: LimitedBy::Source.into(), millis: 9000 }],
            holders: vec![holder.clone(), holder],
            holders_known: 2,
            ..Default::default()
        }
    }

    pub(crate) fn transfer(name: &str) -> wire::Transfer {
        let file = wire::FileInfo { name: name.into(), ..Default::default() };
        wire::Transfer { file: Some(file), bytes_wanted: 10, elapsed_millis: 300, ..Default::default() }
    }

    fn told(reasons: Vec<wire::Explanation>, transfers: Vec<wire::Transfer>) -> Told {
        Told { status: wire::StatusResponse { transfers, ..Default::default() }, reasons, ..Told::default() }
    }

    fn names(state: &State) -> Vec<String> {
        state.rows().into_iter().map(|row| row.name).collect()
    }

    #[test]
    fn running_ones_come_first_and_each_name_once() {
        use explanation::State::{Done, Failed, Running};
        let mut state = State::default();
        state.told(told(
            vec![reasons("b", Running, 43), reasons("d", Failed, 4), reasons("e", Done, 100)],
            vec![transfer("b"), transfer("c")],
        ));
        let rows = state.rows();
        assert_eq!(names(&state), ["b", "c", "d", "e"]);
        assert_eq!((rows[0].percent, rows[0].rate), (43, Some(2 << 20)));
        assert_eq!(
            rows.iter().map(|row| &*row.what).collect::<Vec<_>>(),
            ["limited by the source's uplink", "begins", "failed: no peer holds chunk 4", "done"]
        );
        assert!(state.why("b").unwrap().contains("limited now by: the source's uplink"));
        assert_eq!(state.why("c"), None);
    }

    #[test]
    fn an_older_daemon_tells_no_reasons_and_its_downloads_are_shown() {
        let mut state = State::default();
        state.told(told(Vec::new(), vec![transfer("a")]));
        assert_eq!((names(&state), state.chosen(&state.rows())), (vec!["a".to_owned()], Some(0)));
    }

    #[test]
    fn the_choice_stays_with_its_download_and_is_always_one() {
        use explanation::State::Running;
        let mut state = State::default();
        state.pressed(Press::Down);
        assert_eq!(state.chosen(&state.rows()), None);
        let all = |names: &[&str]| told(names.iter().map(|name| reasons(name, Running, 1)).collect(), Vec::new());
        state.told(all(&["a", "b", "c"]));
        assert_eq!(state.chosen(&state.rows()), Some(0));
        state.pressed(Press::Down);
        state.told(all(&["0", "a", "b", "c"]));
        assert_eq!(state.chosen(&state.rows()), Some(2), "it is b");
        [Press::Last, Press::Down].into_iter().for_each(|press| state.pressed(press));
        assert_eq!(state.chosen(&state.rows()), Some(3));
        [Press::First, Press::Up].into_iter().for_each(|press| state.pressed(press));
        assert_eq!(state.chosen(&state.rows()), Some(0));
        state.pressed(Press::Last);
        state.told(all(&["a"]));
        assert_eq!(state.chosen(&state.rows()), Some(0), "it is gone");
    }

    #[test]
    fn so_many_seconds_of_rates_are_kept() {
        let mut state = State::default();
        for second in 0..KEPT as u64 + 9 {
            let limits = wire::LimitsResponse { down_rate: second, up_rate: 1, ..Default::default() };
            state.told(Told { limits, ..Told::default() });
        }
        assert_eq!((state.came.len(), state.came[0], state.went.len()), (KEPT, 9, KEPT));
    }
}
