//! Commands about rights: tokens, identities, stops.

use std::{
    io::{self, Write},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use drizzle_proto::{
    Scope,
    rights::{Grant, Grants, Role},
    wire::{self, rights_client::RightsClient},
};
use tonic::{Status, transport::Channel};

use super::{CommandError, channel};
use crate::config::{Subject, TokenCommand};

async fn connect(data_dir: &Path) -> Result<RightsClient<Channel>, CommandError> {
    Ok(RightsClient::new(channel(data_dir).await?))
}

/// A role over each of these; over every name if there are none.
fn grants(role: Role, scopes: &[Scope]) -> Vec<wire::RightsGrant> {
    let all = [Scope::All];
    let scopes = if scopes.is_empty() { &all } else { scopes };
    scopes.iter().map(|scope| (&Grant { scope: scope.clone(), role }).into()).collect()
}

/// What the tracker says is granted.
fn granted(grants: &[wire::RightsGrant]) -> Result<Grants, CommandError> {
    let malformed = |text: String| Status::internal(format!("malformed answer: {text}"));
    let all = grants.iter().map(Grant::try_from).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| malformed(error.to_string()))?;
    Ok(Grants::new(all).map_err(|error| malformed(error.to_string()))?)
}

fn time(seconds: u64) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => "never".to_owned(),
    }
}

/// What is done with tokens.
pub async fn token(data_dir: &Path, command: &TokenCommand) -> Result<(), CommandError> {
    let mut tracker = connect(data_dir).await?;
    let mut out = io::stdout().lock();
    match command {
        TokenCommand::Create { ttl, uses, role, prefix } => {
            let request =
                wire::CreateTokenRequest { life_seconds: ttl.as_secs(), uses: *uses, grants: grants(*role, prefix) };
            // Alone on its line, for scripts.
            writeln!(out, "{}", tracker.create_token(request).await?.into_inner().token)?;
        }
        TokenCommand::List => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            writeln!(out, "{:<16}  {:<20}  {:>9}  GRANTS", "TOKEN", "EXPIRES", "USES LEFT")?;
            for token in tracker.list_tokens(wire::ListTokensRequest {}).await?.into_inner().tokens {
                let over = if token.expires < now { " (over)" } else { "" };
                let (expires, grants) = (time(token.expires), granted(&token.grants)?);
                writeln!(out, "{:<16}  {expires:<20}  {:>9}  {grants}{over}", token.id, token.uses_left)?;
            }
        }
        TokenCommand::Delete { id } => {
            tracker.delete_token(wire::DeleteTokenRequest { id: id.to_string() }).await?;
            writeln!(out, "deleted token {id}; whoever joined with it stays")?;
        }
    }
    Ok(())
}

/// Grants a role.
pub async fn grant(
    data_dir: &Path,
    identity: Subject,
    role: Role,
    scopes: &[Scope],
    only: bool,
) -> Result<(), CommandError> {
    let request = wire::GrantRequest { identity: identity.to_string(), grants: grants(role, scopes), only };
    let now = connect(data_dir).await?.grant(request).await?.into_inner().grants;
    writeln!(io::stdout().lock(), "{identity} is granted: {}", granted(&now)?)?;
    Ok(())
}

/// Revokes an identity.
pub async fn revoke(data_dir: &Path, identity: Subject) -> Result<(), CommandError> {
    let mut tracker = connect(data_dir).await?;
    let text = match identity {
        Subject::Peer(id) => {
            tracker.revoke(wire::RevokeRequest { identity: id.to_string() }).await?;
            format!("revoked {id}: no peer serves it any more within some seconds, and it cannot join again")
        }
        Subject::Any => {
            let request = wire::GrantRequest { identity: identity.to_string(), grants: Vec::new(), only: true };
            tracker.grant(request).await?;
            "what was granted to any identity is revoked; grants to single ones stay".to_owned()
        }
    };
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(())
}

/// Forgets an identity.
pub async fn forget(data_dir: &Path, identity: drizzle_proto::PeerId) -> Result<(), CommandError> {
    connect(data_dir).await?.forget(wire::ForgetRequest { identity: identity.to_string() }).await?;
    writeln!(io::stdout().lock(), "forgot {identity}: it may join again with a token")?;
    Ok(())
}

/// Lists identities.
pub async fn identities(data_dir: &Path) -> Result<(), CommandError> {
    let mut tracker = connect(data_dir).await?;
    let mut out = io::stdout().lock();
    writeln!(out, "{:<32}  {:<20}  GRANTS", "IDENTITY", "CERTIFIED")?;
    let mut after = String::new();
    loop {
        let request = wire::ListIdentitiesRequest { after };
        let wire::ListIdentitiesResponse { identities, more } = tracker.list_identities(request).await?.into_inner();
        for identity in &identities {
            let certified = if identity.certified == 0 { "elsewhere".to_owned() } else { time(identity.certified) };
            let grants = match identity.revoked {
                0 => granted(&identity.grants)?.to_string(),
                at => format!("revoked {}", time(at)),
            };
            writeln!(out, "{:<32}  {certified:<20}  {grants}", identity.identity)?;
        }
        match identities.last().filter(|_| more) {
            Some(last) => after = last.identity.clone(),
            None => return Ok(()),
        }
    }
}

/// Stops names.
pub async fn stop(data_dir: &Path, scope: &Scope) -> Result<(), CommandError> {
    connect(data_dir).await?.stop(wire::StopRequest { scope: scope.to_string() }).await?;
    writeln!(
        io::stdout().lock(),
        "stopped {scope}: within some seconds nobody serves or downloads it any more; nothing is deleted, and `resume {scope}` undoes it"
    )?;
    Ok(())
}

/// Resumes names.
pub async fn resume(data_dir: &Path, scope: &Scope) -> Result<(), CommandError> {
    connect(data_dir).await?.resume(wire::ResumeRequest { scope: scope.to_string() }).await?;
    writeln!(io::stdout().lock(), "resumed {scope}")?;
    Ok(())
}

/// Lists what is stopped.
pub async fn stops(data_dir: &Path) -> Result<(), CommandError> {
    let stops = connect(data_dir).await?.list_stops(wire::ListStopsRequest {}).await?.into_inner().stops;
    let mut out = io::stdout().lock();
    writeln!(out, "{:<20}  NAMES", "SINCE")?;
    for stop in stops {
        writeln!(out, "{:<20}  {}", time(stop.since), stop.scope)?;
    }
    Ok(())
}
