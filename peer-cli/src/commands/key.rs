//! `key`: makes a key to sign with. No daemon is asked.

use serde::Serialize;

use crate::{
    args,
    exit::{Exit, Failure},
    format::clean,
    keys::{self, Made},
    output::Out,
};

#[derive(Serialize)]
struct Document<'a> {
    secret_key: &'a str,
    public_key: &'a str,
    key_id: String,
    public: &'a str,
}

pub(super) fn run(command: &args::Key, json: bool) -> Result<Exit, Failure> {
    let args::Key::New { path, no_password } = command;
    let Made { secret, public, line, id } = keys::make(path, !no_password)?;
    let (secret, public) = (secret.to_string_lossy(), public.to_string_lossy());
    let mut out = Out::default();
    if json {
        let key_id = id.to_string();
        out.json(&Document { secret_key: &secret, public_key: &public, key_id, public: &line })?;
    } else {
        let (secret, public) = (clean(&secret), clean(&public));
        out.text(&format!(
            "secret key  {secret}: keep it to yourself, and a copy in a safe place\n\
             public key  {public}: give it to every machine that is to check\n\
             key id      {id}\n\
             {line}\n\
             \n\
             sign:   peer-cli share FILE --sign {secret}\n\
             check:  peer-svc --trust {public} ..., or peer-cli verify NAME FILE --trust {public}\n"
        ))?;
    }
    Ok(Exit::Done)
}
