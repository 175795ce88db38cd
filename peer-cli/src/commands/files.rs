//! `files`: what there is, page by page, so that a long list begins at once and needs little memory.

use std::fmt::Write;

use console::{measure_text_width, pad_str};
use drizzle_proto::wire;
use serde::Serialize;

use super::FileFields;
use crate::{
    connect::Daemon,
    exit::{Exit, Failure},
    format::{bytes, clean},
    output::Out,
};

#[derive(Serialize)]
struct Summary<'a> {
    #[serde(flatten)]
    file: FileFields<'a>,
    full_holders: u32,
    partial_holders: u32,
}

/// Pages in a row without a name that this caller may read: a tracker looks through 64,000 names for each.
const MOST_EMPTY: u32 = 1000;

/// Whether pages go on, as names in their order do: a tracker that begins again and again would have no end.
#[derive(Default)]
struct Going {
    last: String,
    empty: u32,
}

impl Going {
    fn takes(&mut self, page: &wire::ListFilesResponse) -> Result<(), Failure> {
        self.empty = if page.files.is_empty() { self.empty + 1 } else { 0 };
        for file in page.files.iter().filter_map(|summary| summary.file.as_ref()) {
            if file.name <= self.last {
                return Err(Failure::new(Exit::Other, "the tracker's list of files does not go on"));
            }
            self.last.clone_from(&file.name);
        }
        if self.empty > MOST_EMPTY {
            return Err(Failure::new(Exit::Other, "the tracker's list of files has no end"));
        }
        Ok(())
    }
}

pub(super) async fn run(daemon: &Daemon, prefix: String, json: bool, out: &mut Out) -> Result<Exit, Failure> {
    let mut control = daemon.control.clone();
    let mut request = wire::ListFilesRequest { prefix, page_size: 1000, ..Default::default() };
    let (mut any, mut column, mut going) = (false, 0, Going::default());
    while !out.is_closed() {
        let page = daemon.answer(control.list_files(request.clone())).await?;
        going.takes(&page)?;
        let files = page.files.iter().filter_map(|summary| Some((summary.file.as_ref()?, summary)));
        if json {
            for (file, summary) in files {
                let (full_holders, partial_holders) = (summary.full_holders, summary.partial_holders);
                out.json(&Summary { file: file.into(), full_holders, partial_holders })?;
            }
        } else {
            out.text(&table(files.collect(), &mut column, !any))?;
        }
        any |= !page.files.is_empty();
        // A token that stays the same would list one page for ever.
        if page.next_page_token.is_empty() || page.next_page_token == request.page_token {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if !any && !json && request.prefix.is_empty() {
        out.line("no files are shared; `peer-cli share PATH` shares some")?;
    } else if !any && !json {
        out.line(&format!("no file's name starts with {}", clean(&request.prefix)))?;
    }
    Ok(Exit::Done)
}

/// The lines of a page, and the heading before the first. `column` is the width of the names, which only
/// grows from page to page.
fn table(files: Vec<(&wire::FileInfo, &wire::FileSummary)>, column: &mut usize, heading: bool) -> String {
    let widths = files.iter().map(|(file, _)| measure_text_width(&clean(&file.name)));
    *column = widths.chain([*column, "NAME".len()]).max().unwrap_or(0);
    let mut text = String::new();
    let mut line = |name: &str, size: &str, chunks: &str, full: &str, partial: &str| {
        let name = pad_str(name, *column, console::Alignment::Left, None);
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name}  {size:>9}  {chunks:>7}  {full:>6}  {partial:>7}");
    };
    if heading && !files.is_empty() {
        line("NAME", "SIZE", "CHUNKS", "FULL", "PARTIAL");
    }
    for (file, summary) in files {
        line(
            &clean(&file.name),
            &bytes(file.size),
            &file.chunk_count.to_string(),
            &summary.full_holders.to_string(),
            &summary.partial_holders.to_string(),
        );
    }
    text
}
