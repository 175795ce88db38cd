//! What an operator types: asks the running tracker of a data folder, and prints the answer.

pub mod rights;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use drizzle_proto::{
    FileName, PeerId,
    client::status_text,
    net::{tls::options::TlsMode, transport::Transport},
    wire::{self, operator_client::OperatorClient},
};
use tonic::{Code, Status, transport::Channel};

use crate::{access::authority, config::Cli, operator::Place};

/// Why a command failed: one line.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Nothing listens in the data folder.
    #[error(
        "no tracker runs with the data folder {}; give the --data-dir of the running one, as the user that it runs as: {reason}",
        folder.display()
    )]
    NotRunning {
        /// The data folder.
        folder: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The tracker said no.
    #[error("{}", status_text(.0))]
    Refused(#[from] Status),
    /// The answer could not be printed.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl CommandError {
    /// Whether the reader of the output went away, which is its business.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

async fn connect(data_dir: &Path) -> Result<OperatorClient<Channel>, CommandError> {
    Ok(OperatorClient::new(channel(data_dir).await?))
}

async fn channel(data_dir: &Path) -> Result<Channel, CommandError> {
    let not_running = |reason: String| CommandError::NotRunning { folder: data_dir.to_owned(), reason };
    let place = Place::of(data_dir).map_err(|error| not_running(error.to_string()))?;
    let channel = Transport::plaintext().connect_local(place.socket()).await;
    channel.map_err(|error| not_running(drizzle_proto::net::innermost(&error).to_string()))
}

/// Lists names with their owners.
pub async fn files(data_dir: &Path, prefix: &str) -> Result<(), CommandError> {
    let mut tracker = connect(data_dir).await?;
    let (mut out, mut after) = (io::stdout().lock(), String::new());
    writeln!(
        out,
        "{:>14}  {:>5}  {:>7}  {:<32}  {:<21}  NAME",
        "BYTES", "FULL", "PARTIAL", "OWNER", "OWNER'S ADDRESS"
    )?;
    loop {
        let request = wire::ListNamesRequest { prefix: prefix.to_owned(), after };
        let wire::ListNamesResponse { names, more } = tracker.list_names(request).await?.into_inner();
        for name in &names {
            let file = name.file.as_ref().ok_or_else(malformed)?;
            let address = if name.owner_address.is_empty() { "away" } else { &name.owner_address };
            let (full, partial) = (name.full_holders, name.partial_holders);
            writeln!(
                out,
                "{:>14}  {full:>5}  {partial:>7}  {:<32}  {address:<21}  {}",
                file.size, name.owner, file.name
            )?;
        }
        let Some(last) = names.last().and_then(|name| name.file.as_ref()).filter(|_| more) else { return Ok(()) };
        after = last.name.clone();
    }
}

/// Frees a name.
pub async fn drop_name(data_dir: &Path, name: &FileName, free: bool) -> Result<(), CommandError> {
    let request = wire::DropNameRequest { name: name.to_string(), free };
    let wire::DropNameResponse { file, owner, holders } =
        connect(data_dir).await?.drop_name(request).await?.into_inner();
    let mut out = io::stdout().lock();
    match file {
        Some(file) => writeln!(
            out,
            "dropped {name} ({} bytes, id {}), owned by peer {owner}; told {holders} {} to offer it no more",
            file.size,
            file.file_id,
            if holders == 1 { "holder" } else { "holders" }
        )?,
        None => writeln!(out, "{name} was not registered")?,
    }
    let next = match free {
        true => "any peer may register any content as",
        false => "this content stays barred (`drop --free` lifts that), and any peer may register other content as",
    };
    writeln!(out, "{next} {name}")?;
    Ok(())
}

/// Makes a peer the owner of a name.
pub async fn reassign(data_dir: &Path, name: &FileName, owner: PeerId) -> Result<(), CommandError> {
    let request = wire::ReassignNameRequest { name: name.to_string(), owner: owner.to_string() };
    let before = connect(data_dir).await?.reassign_name(request).await?.into_inner().owner;
    writeln!(io::stdout().lock(), "peer {owner} owns {name} now; before, peer {before} did")?;
    Ok(())
}

fn malformed() -> Status {
    Status::new(Code::Internal, "malformed answer: a name without its file")
}

/// What a health check connects by: it trusts what the tracker of this data folder trusts, and shows nothing. Without a
/// data folder, and where it is told so, it uses no TLS.
pub fn health_transport(cli: &Cli) -> Result<Transport, String> {
    let ca = match (&cli.tls.tls_ca, cli.data_dir.as_deref()) {
        (Some(ca), _) => Some(ca.clone()),
        (None, Some(data_dir)) if authority::exists(data_dir) => Some(authority::certificate(data_dir)),
        _ => None,
    };
    match ca.filter(|_| cli.tls.tls != Some(TlsMode::Off)) {
        Some(ca) => Transport::that_only_asks(&ca),
        None => Ok(Transport::plaintext()),
    }
}
