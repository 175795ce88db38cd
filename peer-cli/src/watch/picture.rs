//! The screen, drawn. It uses weight and no colours, so that it reads on any background.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table, TableState, Wrap},
};

use super::state::{self, State};
use crate::format::{bytes, clean, clock, count, limit, rate};

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
/// With fewer columns nothing is shown.
const NARROWEST: u16 = 20;
/// Columns of a bar.
const BAR: usize = 10;
/// From so many columns on there is room for all of it, and for the rates.
const WIDE: u16 = 90;
const MEDIUM: u16 = 60;

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    if frame.area().width < NARROWEST {
        // Beside that, ratatui panics where a wide character has no room.
        return;
    }
    let rows = state.rows();
    let chosen = state.chosen(&rows);
    let listed = u16::try_from(rows.len().max(1)).unwrap_or(u16::MAX).saturating_add(2);
    let [head, came, went, list, why, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Length(1),
        // Half of what is left at most.
        Constraint::Length(listed.min(frame.area().height.saturating_sub(5) / 2).max(3)),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    header(frame, head, state);
    let limits = &state.told.limits;
    line_of_rate(frame, came, "in", limits.down_rate, limits.down, &state.came);
    line_of_rate(frame, went, "out", limits.up_rate, limits.up, &state.went);
    downloads(frame, list, &rows, chosen);
    let name = chosen.map(|at| rows[at].name.as_str());
    reasons(frame, why, name.and_then(|name| state.why(name)));
    frame.render_widget(Paragraph::new("q ends  ↑ ↓ choose a download").style(DIM), foot);
}

fn header(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let status = &state.told.status;
    let tracker = if status.tracker_connected { "connected" } else { "away: the daemon keeps trying" };
    let first = Line::from(vec![
        Span::styled(format!("peer {}", clean(&status.advertise)), BOLD),
        Span::raw(format!("  tracker {} ({tracker})", clean(&status.tracker))),
    ]);
    let mut second = format!(
        "{} shared, {} partial; {} of {} slots taken; sent {}, received {}",
        count(status.shared_files, "file"),
        status.partial_files,
        status.uploads_running,
        status.upload_slots,
        bytes(status.uploaded_bytes),
        bytes(status.downloaded_bytes)
    );
    let concerns = status.warnings.len() + status.hanging_files.len() + status.refused.len();
    if concerns > 0 {
        second += &format!("; {}: see peer-cli status", count(concerns as u64, "warning"));
    }
    frame.render_widget(Paragraph::new(vec![first, Line::from(second)]), area);
}

fn line_of_rate(
    frame: &mut Frame<'_>,
    area: Rect,
    way: &str,
    now: u64,
    most: Option<u64>,
    history: &std::collections::VecDeque<u64>,
) {
    let [label, graph] = Layout::horizontal([Constraint::Length(34), Constraint::Min(0)]).areas(area);
    let most = most.map(|most| format!(" of {}", limit(Some(most)))).unwrap_or_default();
    let text =
        Line::from(vec![Span::raw(format!("{way:<4}")), Span::styled(rate(Some(now as f64)), BOLD), Span::raw(most)]);
    frame.render_widget(Paragraph::new(text), label);
    let fits = usize::from(graph.width);
    let shown: Vec<u64> = history.iter().skip(history.len().saturating_sub(fits)).copied().collect();
    frame.render_widget(Sparkline::default().data(shown), graph);
}

fn bar(percent: u64) -> String {
    let full = usize::try_from(percent).unwrap_or(100).min(100) * BAR / 100;
    "█".repeat(full) + &"░".repeat(BAR - full)
}

fn downloads(frame: &mut Frame<'_>, area: Rect, rows: &[state::Row], chosen: Option<usize>) {
    let block = Block::new().borders(Borders::TOP).title("downloads");
    if rows.is_empty() {
        let none = "none runs, and none has ended since the daemon was started";
        frame.render_widget(Paragraph::new(none).style(DIM).block(block), area);
        return;
    }
    // What matters least goes first where there is no room.
    let (has_bar, has_rate) = (area.width >= WIDE, area.width >= MEDIUM);
    let fits = |column: usize| match column {
        2 | 4 => has_bar,
        3 => has_rate,
        _ => true,
    };
    let cells = rows.iter().map(|row| {
        let took = clock(Some(std::time::Duration::from_millis(row.millis)));
        let rate = row.rate.map_or_else(String::new, |bytes| rate(Some(bytes as f64)));
        let texts = [
            clean(&row.name).into_owned(),
            format!("{:>3} %", row.percent),
            bar(row.percent),
            rate,
            took,
            clean(&row.what).into_owned(),
        ];
        Row::new(texts.into_iter().enumerate().filter_map(|(column, text)| fits(column).then(|| Cell::from(text))))
    });
    let widths = [
        Constraint::Fill(2),
        Constraint::Length(5),
        Constraint::Length(u16::try_from(BAR).unwrap_or(u16::MAX)),
        Constraint::Length(11),
        Constraint::Length(8),
        Constraint::Fill(3),
    ];
    let widths = widths.into_iter().enumerate().filter_map(|(column, width)| fits(column).then_some(width));
    let table =
        Table::new(cells, widths).block(block).row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(chosen));
}

fn reasons(frame: &mut Frame<'_>, area: Rect, text: Option<String>) {
    let block = Block::new().borders(Borders::TOP).title("why");
    let text = text.unwrap_or_default();
    // Text of others was cleaned, line by line, when it was put into words.
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }).block(block), area);
}

#[cfg(test)]
mod tests {
    use drizzle_proto::wire::{self, explanation};
    use proptest::prelude::*;
    use ratatui::{Terminal, backend::TestBackend};

    use super::{
        super::state::{
            Told,
            tests::{reasons, transfer},
        },
        *,
    };

    fn drawn(state: &State, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    fn state() -> State {
        let status = wire::StatusResponse {
            advertise: "10.0.0.5:7401".into(),
            tracker: "10.0.0.1:7400".into(),
            tracker_connected: true,
            shared_files: 3,
            upload_slots: 4,
            uploads_running: 1,
            uploaded_bytes: 5 << 20,
            transfers: vec![transfer("new")],
            warnings: vec!["copied state".into()],
            ..Default::default()
        };
        let limits = wire::LimitsResponse { down_rate: 31 << 20, up_rate: 0, down: Some(50_000_000), up: None };
        let reasons = vec![reasons("models/a", explanation::State::Running, 43)];
        let mut state = State::default();
        state.told(Told { status, limits, reasons });
        state
    }

    #[test]
    fn a_person_sees_machine_rates_downloads_and_the_reason() {
        let lines = drawn(&state(), 110, 24);
        let has =
            |text: &str| assert!(lines.iter().any(|line| line.contains(text)), "{text}\n in\n{}", lines.join("\n"));
        has("peer 10.0.0.5:7401  tracker 10.0.0.1:7400 (connected)");
        has(
            "3 files shared, 0 partial; 1 of 4 slots taken; sent 5.00 MiB, received 0 B; 1 warning: see peer-cli status",
        );
        has("in  31.0 MiB/s of 50 MB/s");
        has("out 0 B/s");
        has("models/a");
        has(" 43 % ████░░░░░░ 2.00 MiB/s  0:09     limited by the source's uplink");
        has("  0 % ░░░░░░░░░░             0:00     begins");
        has("  limited now by: the source's uplink");
        has("  2 known holders:");
        has("q ends");
    }

    #[test]
    fn a_narrow_terminal_has_the_name_how_far_it_is_and_the_reason() {
        let lines = drawn(&state(), 44, 20);
        assert!(
            lines.iter().any(|line| line.starts_with("models/a") && line.contains("43 % limited by")),
            "{lines:#?}"
        );
    }

    #[test]
    fn nothing_to_show_is_said() {
        let lines = drawn(&State::default(), 80, 12);
        assert!(lines.iter().any(|line| line.contains("none runs")), "{lines:?}");
    }

    proptest! {
        #[test]
        fn no_size_of_the_terminal_and_no_name_breaks_it(width in 1u16..200, height in 1u16..60, name in "[a漢é\u{1b}\u{202e}\n]{0,80}") {
            let mut state = state();
            let mut told = state.told.clone();
            told.reasons[0].name = name;
            state.told(told);
            let lines = drawn(&state, width, height);
            let is_safe = lines.iter().all(|line| !line.contains(['\u{1b}', '\u{202e}']));
            prop_assert!(is_safe);
        }
    }
}
