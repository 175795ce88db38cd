//! `peer-cli join`: an identity for this person's commands.

use drizzle_proto::token::Token;

use crate::{
    args::Join,
    exit::{Exit, Failure},
    identity,
    output::Out,
};

/// Joins, and says who that is.
pub(crate) async fn run(join: Join) -> Result<Exit, Failure> {
    let token: Token = join
        .token
        .parse()
        .map_err(|error: drizzle_proto::token::TokenError| Failure::new(Exit::Usage, error.to_string()))?;
    let folder = join.to.or_else(identity::default_folder);
    let folder = folder.ok_or_else(|| Failure::new(Exit::Usage, "there is no home folder; say --to FOLDER"))?;
    let peer = identity::join(&join.tracker, &token, &folder).await?;
    let mut out = Out::default();
    out.line(&format!("joined as {peer}; certificate, key and authority are in {}", folder.display()))?;
    Ok(Exit::Done)
}
