//! Credentials in files that others write: certificates are renewed without a restart.
//!
//! Tools replace such files in many ways, by a rename, through links, in place, one after the other. So they are read anew
//! when any of them changed, and what does not fit together yet is looked at again.

use std::{path::Path, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{Credentials, Files, Tls};
use crate::files;

/// They are looked at this often.
pub const LOOKS: Duration = Duration::from_secs(5);

/// What tells that a file was written. Content is compared, since a change within a second keeps time and size.
type Seen = [Option<Vec<u8>>; 3];

/// Keeps `tls` as the files are, until `stop`.
pub async fn keep(tls: Arc<Tls>, files: Files, every: Duration, stop: CancellationToken) {
    let mut before = look(&files).await;
    let mut said = false;
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        let now = look(&files).await;
        if now == before {
            continue;
        }
        let Some(reading) = read(&files).await else { continue };
        match reading.map_err(|error| error.to_string()).and_then(|credentials| {
            if credentials.says() != tls.certificate().and_then(|certificate| certificate.says) {
                return Err("the new certificate names another identity; restart the daemon to change it".to_owned());
            }
            tls.replace(&credentials).map_err(|error| error.to_string())
        }) {
            Ok(()) => {
                (before, said) = (now, false);
                tracing::info!(cert = %files.cert.display(), "the certificate was replaced");
            }
            // A tool that writes them one after the other is not at fault: it is said if it lasts.
            Err(error) if said => {
                tracing::warn!(%error, "the changed TLS files are not used; those from before stay in use");
                before = now;
                said = false;
            }
            Err(_) => said = true,
        }
    }
}

async fn look(files: &Files) -> Seen {
    let files = files.clone();
    let read = |path: &Path| files::read(path).ok();
    let looked = tokio::task::spawn_blocking(move || [read(&files.cert), read(&files.key), read(&files.ca)]);
    looked.await.unwrap_or_default()
}

async fn read(files: &Files) -> Option<Result<Credentials, super::CredentialsError>> {
    let files = files.clone();
    tokio::task::spawn_blocking(move || Credentials::read(&files)).await.ok()
}
