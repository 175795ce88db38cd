//! What is written in one word.

use std::path::{Component, Path};

use drizzle_proto::{Address, Digest, FileName, Labels, PeerId, RateLimit, Scope, name::MAX_NAME, token::Token};

fn text(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes).ok()
}

/// Names of files, and scopes over them.
pub fn name(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(name) = FileName::new(text) {
        assert_eq!(name.as_str(), text);
        assert!(name.as_str().len() <= MAX_NAME && !name.as_str().chars().any(char::is_control));
        let joined = Path::new("/base").join(name.to_path());
        assert!(joined.starts_with("/base") && joined != Path::new("/base"), "it stays in its folder");
        assert!(name.to_path().components().all(|part| matches!(part, Component::Normal(_))));
        assert!(Scope::All.covers(&name) && Scope::Name(name.clone()).covers(&name));
        if let Some((folder, _)) = text.rsplit_once('/') {
            assert!(format!("{folder}/").parse::<Scope>().expect("its folder is a scope").covers(&name));
        }
    }
    if let Ok(scope) = text.parse::<Scope>() {
        assert_eq!(scope.to_string(), text);
        assert_eq!(scope.to_string().parse::<Scope>(), Ok(scope.clone()));
        assert!(scope.meets(""));
    }
}

/// Addresses, labels, ids, limits.
pub fn address(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    for address in [Address::new(text), Address::from_url(text)].into_iter().flatten() {
        assert_eq!(Address::new(address.as_str()), Ok(address.clone()));
        assert!(!address.as_str().contains(['/', '@', '\\', '?', '#']), "it names a host and a port, and no more");
        let local = address.asked_locally();
        assert_eq!(Address::new(local.as_str()), Ok(local));
    }
    if let Ok(labels) = text.parse::<Labels>() {
        assert_eq!(labels.to_string().parse::<Labels>(), Ok(labels));
    }
    if let Ok(id) = text.parse::<PeerId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(limit) = text.parse::<RateLimit>() {
        assert_eq!(limit.to_string().parse::<RateLimit>(), Ok(limit));
    }
}

/// Join tokens: as they are, and with the checksum that belongs to these bytes, which nobody finds by chance.
pub fn token(bytes: &[u8]) {
    let typed = text(bytes).map(str::to_owned);
    let made = bytes.get(..72).map(|body| {
        let check = &Digest::of(body).to_string()[..8];
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let text = format!("drizzle-join-{}{check}", hex(body));
        assert!(text.parse::<Token>().is_ok(), "72 bytes with their checksum are a token");
        text
    });
    for text in typed.into_iter().chain(made) {
        let Ok(token) = text.parse::<Token>() else { continue };
        let printed = token.to_string();
        assert_eq!(printed, text.trim().to_lowercase());
        assert!(token.kept().is_of(&token));
        // Behind the mark and the id.
        let secret = &printed[29..93];
        assert!(!format!("{token:?}").contains(&secret[..32]), "a log does not give it away");
    }
}
