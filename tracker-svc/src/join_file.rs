//! A token for everybody who can read a file: on a volume or a secret that trusted machines have.

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

use crate::access::{Access, ChangeError, seconds};

/// It is made anew when it is read by none of the first starts in a year.
const LIFE: Duration = Duration::from_secs(366 * 24 * 3600);
const USES: u32 = 1_000_000;

/// Why there is no such token.
#[derive(Debug, thiserror::Error)]
pub enum JoinFileError {
    /// The file cannot be written.
    #[error("--join-file {}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The token cannot be recorded.
    #[error("--join-file: {0}")]
    Token(String),
}

/// Makes the token, unless the file has one that is good.
pub(crate) async fn keep(path: &Path, access: &Access, authority: [u8; 32]) -> Result<(), JoinFileError> {
    let kept = fs::read_to_string(path).ok().and_then(|text| text.parse::<Token>().ok());
    let now = seconds(SystemTime::now());
    let is_good = kept.is_some_and(|token| {
        token.authority == authority
            && access.look(|state| {
                state.tokens().any(|(id, issued)| id == token.id && issued.expires > now && issued.uses_left > 0)
            })
    });
    if is_good {
        return Ok(());
    }
    let failed = |error: ChangeError| JoinFileError::Token(error.to_string());
    let all = Grants::new([Grant { scope: Scope::All, role: Role::Publisher }]);
    let all = all.map_err(|error| JoinFileError::Token(error.to_string()))?;
    let token = access.create_token(authority, LIFE, USES, all).await.map_err(failed)?;
    // Whole or not at all: peers wait for it.
    let written = files::write(path, format!("{token}\n").as_bytes(), 0o640);
    written.map_err(|source| JoinFileError::File { path: path.to_owned(), source })?;
    tracing::info!(path = %path.display(), token = %token.id, "whoever reads this file may join");
    Ok(())
}
