//! `explain`: why downloads take, or took, as long as they do.

use drizzle_proto::{FileName, wire};

use crate::{
    connect::Daemon,
    exit::{Exit, Failure},
    output::Out,
    reasons::{Report, text},
};

pub(super) async fn run(daemon: &Daemon, name: Option<FileName>, json: bool, out: &mut Out) -> Result<Exit, Failure> {
    let request = wire::ExplainRequest { name: name.map(|name| name.to_string()).unwrap_or_default() };
    let told = daemon.answer(daemon.control.clone().explain(request)).await?.explanations;
    if json {
        for reasons in &told {
            out.json(&Report::new(reasons))?;
        }
    } else if told.is_empty() {
        out.line("no download runs, and none has ended since the daemon was started")?;
    } else {
        let texts: Vec<String> = told.iter().map(text).collect();
        out.text(&texts.join("\n"))?;
    }
    Ok(Exit::Done)
}
