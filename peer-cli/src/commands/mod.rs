//! One file per command: ask the daemon, render the answer.

mod download;
mod explain;
mod files;
mod join;
mod key;
mod limit;
mod locations;
mod share;
mod status;
mod verify;

use clap::CommandFactory;
use drizzle_proto::{FileName, net::control_at::ControlAt, wire};
use serde::Serialize;

use crate::{
    args::{self, Args, Command},
    connect::{Daemon, Place},
    exit::{Exit, Failure},
    format::clean,
    keys::SigningKey,
    output::Out,
    signals::Interrupts,
};

/// Carries out a command line.
pub(crate) async fn run(args: Args) -> Result<Exit, Failure> {
    // Before the signals are taken over: they end a question for a password.
    let signing = match &args.command {
        Command::Key { command } => return key::run(command, args.json),
        Command::Share(args::Share { sign: Some(path), .. }) => Some(SigningKey::read(path)?),
        _ => None,
    };
    let interrupts = Interrupts::listen();
    let mut interrupts =
        interrupts.map_err(|error| Failure::new(Exit::Other, format!("cannot listen for signals: {error}")))?;
    let at = args.peer.clone().unwrap_or_else(ControlAt::found);
    let transport = args.tls.transport(&at).await?;
    let peer = Place { at, transport };
    match args.command {
        Command::Completions { shell } => completions(shell),
        Command::Join(join) => tokio::select! {
            result = join::run(join) => result,
            exit = interrupts.next() => Err(Failure::new(exit, "interrupted")),
        },
        // The one command that has something to clean up.
        Command::Download(download) => download::run(&peer, download, args.json, interrupts).await,
        other => tokio::select! {
            result = answer(&peer, other, signing.as_ref(), args.json) => result,
            exit = interrupts.next() => Err(Failure::new(exit, "interrupted")),
        },
    }
}

async fn answer(peer: &Place, command: Command, signing: Option<&SigningKey>, json: bool) -> Result<Exit, Failure> {
    // What is wrong with the command itself is told even when no daemon runs.
    let (mut request, mut order) = (None, None);
    match &command {
        Command::Share(share) => request = Some(share::request(share)?),
        Command::Verify(verify) => order = Some(verify::order(verify)?),
        _ => {}
    }
    let daemon = Daemon::connect(peer).await?;
    let mut out = Out::default();
    match command {
        Command::Share(_) => share::run(&daemon, request.unwrap_or_default(), signing, json, &mut out).await,
        Command::Verify(_) => match order {
            Some(order) => verify::run(&daemon, order, json, &mut out).await,
            None => Ok(Exit::Done),
        },
        Command::Unshare { name } => unshare(&daemon, name, json, &mut out).await,
        Command::Files { prefix } => files::run(&daemon, prefix, json, &mut out).await,
        Command::Locations { name } => locations::run(&daemon, name, json, &mut out).await,
        Command::Explain { name } => explain::run(&daemon, name, json, &mut out).await,
        Command::Limit(limit) => limit::run(&daemon, limit, json, &mut out).await,
        Command::Status { watch: false } => status::run(&daemon, json, &mut out).await,
        Command::Status { watch: true } => status::watch(&daemon, json, &mut out).await,
        Command::Cancel { name } => cancel(&daemon, name, json, &mut out).await,
        Command::Download(_) | Command::Key { .. } | Command::Completions { .. } | Command::Join(_) => Ok(Exit::Done),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "peer-cli", &mut script);
    Out::default().text(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}

async fn unshare(daemon: &Daemon, name: FileName, json: bool, out: &mut Out) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Unshared<'a> {
        name: &'a str,
        name_released: bool,
    }
    let request = wire::UnshareRequest { name: name.to_string() };
    let answer = daemon.answer(daemon.control.clone().unshare(request)).await;
    let answer =
        answer.map_err(|failure| failure.hint_if(Exit::NoSuchFile, "`peer-cli files` lists what is shared."))?;
    if json {
        out.json(&Unshared { name: name.as_str(), name_released: answer.name_released })?;
    } else if answer.name_released {
        out.line(&format!("{}: no longer shared; the name is free", clean(name.as_str())))?;
    } else {
        out.line(&format!("{}: no longer shared from here; its name stays registered", clean(name.as_str())))?;
    }
    Ok(Exit::Done)
}

async fn cancel(daemon: &Daemon, name: FileName, json: bool, out: &mut Out) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Cancelled<'a> {
        name: &'a str,
        cancelled: bool,
    }
    let request = wire::CancelTransferRequest { name: name.to_string(), caller: String::new() };
    let answer = daemon.answer(daemon.control.clone().cancel_transfer(request)).await;
    answer.map_err(|failure| failure.hint_if(Exit::NoSuchFile, "`peer-cli status` lists the running transfers."))?;
    if json {
        out.json(&Cancelled { name: name.as_str(), cancelled: true })?;
    } else {
        let name = clean(name.as_str());
        out.line(&format!("{name}: cancelled; its chunks are kept, `peer-cli download {name}` goes on"))?;
    }
    Ok(Exit::Done)
}

/// The fields of a file that every JSON document about files begins with.
#[derive(Serialize)]
struct FileFields<'a> {
    name: &'a str,
    file_id: &'a str,
    size: u64,
    chunk_size: u32,
    chunk_count: u32,
}

impl<'a> From<&'a wire::FileInfo> for FileFields<'a> {
    fn from(file: &'a wire::FileInfo) -> Self {
        Self {
            name: &file.name,
            file_id: &file.file_id,
            size: file.size,
            chunk_size: file.chunk_size,
            chunk_count: file.chunk_count,
        }
    }
}
