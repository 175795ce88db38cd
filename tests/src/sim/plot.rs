//! What is drawn of a run: how many peers are done over time beside the bound, and how much of the uplinks is in use.

use std::path::Path;

use plotters::prelude::{
    BLACK, BLUE, ChartBuilder, Color, IntoDrawingArea, LineSeries, PathElement, RED, SVGBackend, WHITE,
};

use super::report::Report;

/// Size of the drawing, in points.
const SIZE: (u32, u32) = (900, 700);

/// Draws a report into a file.
///
/// # Errors
/// In words: the file cannot be written.
pub fn plot(report: &Report, to: &Path) -> Result<(), String> {
    draw(report, to).map_err(|error| format!("cannot draw {}: {error}", to.display()))
}

fn draw(report: &Report, to: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let ends = report.ends();
    let last = ends.last().copied().unwrap_or(report.bound).max(report.bound) * 1.05;
    let root = SVGBackend::new(to, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SIZE.1 / 2);

    let title = format!("{}: {:.3} times the bound", report.title, report.ratio());
    let mut done = ChartBuilder::on(&upper)
        .caption(title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..last, 0.0..1.0)?;
    done.configure_mesh().x_desc("seconds").y_desc("peers that are done").draw()?;
    let share = |nth: usize| nth as f64 / report.peers.len() as f64;
    let steps = ends.iter().enumerate().flat_map(|(nth, end)| [(*end, share(nth)), (*end, share(nth + 1))]);
    done.draw_series(LineSeries::new(std::iter::once((0.0, 0.0)).chain(steps), &BLUE))?
        .label("done")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], BLUE));
    done.draw_series(LineSeries::new([(report.bound, 0.0), (report.bound, 1.0)], &RED))?
        .label("bound")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], RED));
    done.configure_series_labels().border_style(BLACK.mix(0.5)).background_style(WHITE).draw()?;

    let mut used = ChartBuilder::on(&lower)
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..last, 0.0..1.05)?;
    used.configure_mesh().x_desc("seconds").y_desc("uplinks in use").draw()?;
    let points = report.used.iter().enumerate().map(|(nth, used)| ((nth as f64 + 0.5) * report.bin, *used));
    used.draw_series(LineSeries::new(points.take_while(|(at, _)| *at < last), &BLUE))?;
    root.present()?;
    Ok(())
}
