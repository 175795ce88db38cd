//! A token for everybody who can read it, where trusted machines look: in a file of a volume, or in a Secret of
//! Kubernetes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use drizzle_proto::{
    Scope, files,
    rights::{Grant, Grants, Role},
    token::Token,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    access::{Access, seconds},
    kubernetes::{Cluster, SecretName},
};

const LIFE: Duration = Duration::from_secs(366 * 24 * 3600);
const USES: u32 = 1_000_000;
/// The key of a Secret that holds it.
const KEY: &str = "token";
/// A Secret is looked at so often: somebody may delete it, and a token runs out.
const LOOKS: Duration = Duration::from_secs(3600);
/// And after a failure.
const AGAIN: Duration = Duration::from_secs(5);

/// Why there is no such token.
#[derive(Debug, thiserror::Error)]
pub enum JoinTokenError {
    /// The file cannot be written.
    #[error("--join-file {}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The token cannot be recorded.
    #[error("no token for everybody can be made: {0}")]
    Token(String),
}

/// Keeps a token in a file: makes it, unless the file has one that is good.
pub(crate) async fn keep_file(path: &Path, access: &Access, authority: [u8; 32]) -> Result<(), JoinTokenError> {
    let kept = fs::read_to_string(path).ok();
    if kept.is_some_and(|kept| is_good(&kept, access, authority)) {
        return Ok(());
    }
    let token = make(access, authority).await?;
    // Whole or not at all: peers wait for it.
    let written = files::write(path, format!("{token}\n").as_bytes(), 0o640);
    written.map_err(|source| JoinTokenError::File { path: path.to_owned(), source })?;
    info!(path = %path.display(), token = %token.id, "whoever reads this file may join");
    Ok(())
}

/// Keeps a token in a Secret until `stop`. The cluster may be away: then it is tried again, and nothing waits for it.
pub(crate) async fn keep_secret(
    name: SecretName,
    cluster: Cluster,
    access: Access,
    authority: [u8; 32],
    stop: CancellationToken,
) {
    let mut failed = false;
    loop {
        let next = match look(&name, &cluster, &access, authority).await {
            Ok(()) => LOOKS,
            Err(error) => {
                // Once until it works: what is wrong may stay so for long.
                if !failed {
                    warn!("--join-secret {name}: {error}; trying again every {} s", AGAIN.as_secs());
                }
                AGAIN
            }
        };
        failed = next == AGAIN;
        if stop.run_until_cancelled(tokio::time::sleep(next)).await.is_none() {
            return;
        }
    }
}

async fn look(
    name: &SecretName,
    cluster: &Cluster,
    access: &Access,
    authority: [u8; 32],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let kept = cluster.secret(name, KEY).await?;
    if kept.is_some_and(|kept| is_good(&kept, access, authority)) {
        return Ok(());
    }
    let token = make(access, authority).await?;
    if let Err(error) = cluster.put_secret(name, KEY, &format!("{token}\n")).await {
        // Nobody has it.
        access.delete_token(token.id).await?;
        return Err(error.into());
    }
    info!(secret = %name, token = %token.id, "whoever reads this Secret may join");
    Ok(())
}

fn is_good(kept: &str, access: &Access, authority: [u8; 32]) -> bool {
    let now = seconds(SystemTime::now());
    kept.trim().parse::<Token>().is_ok_and(|token| {
        token.authority == authority
            && access.look(|state| {
                state.tokens().any(|(id, issued)| id == token.id && issued.expires > now && issued.uses_left > 0)
            })
    })
}

async fn make(access: &Access, authority: [u8; 32]) -> Result<Token, JoinTokenError> {
    let failed = |error: &dyn std::error::Error| JoinTokenError::Token(error.to_string());
    let all = Grants::new([Grant { scope: Scope::All, role: Role::Publisher }]).map_err(|error| failed(&error))?;
    access.create_token(authority, LIFE, USES, all).await.map_err(|error| failed(&error))
}
