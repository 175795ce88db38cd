//! The little that a tracker asks of a Kubernetes cluster that it runs in: one Secret, read and written over the cluster's
//! API with the pod's service account.

use std::{fmt, io, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use ct_codecs::{Base64, Decoder, Encoder};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::{Value, json};

/// Where the kubelet puts what a pod needs for the API.
pub(crate) const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// An answer has to be here by then.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer: a Secret may have a megabyte, and base64 adds a third.
const LONGEST: usize = 2 << 20;
/// As which program the Secret's field is owned.
const MANAGER: &str = "drizzle-tracker";

/// The name of a Secret, by the rules of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretName(String);

/// It cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of a Secret has at most 253 characters of a-z, 0-9, '-' and '.', the first and last of them letters or digits"
)]
pub struct NoSecretName;

impl FromStr for SecretName {
    type Err = NoSecretName;

    fn from_str(text: &str) -> Result<Self, NoSecretName> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let fits = (1..=253).contains(&text.len())
            && text.chars().all(|c| plain(c) || c == '-' || c == '.')
            && text.starts_with(plain)
            && text.ends_with(plain);
        if fits { Ok(Self(text.to_owned())) } else { Err(NoSecretName) }
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the cluster did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The pod has no account.
    #[error("cannot read {}: {source}; the pod needs a service account that is mounted", path.display())]
    Account {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The API cannot be reached.
    #[error("the cluster's API cannot be reached: {0}")]
    Unreachable(String),
    /// The API said no.
    #[error("the cluster's API refused: {0}")]
    Refused(String),
    /// The answer is not what the API answers.
    #[error("the answer of the cluster's API is malformed")]
    Malformed,
}

/// The cluster's API, and the account by which it is asked.
#[derive(Debug, Clone)]
pub struct Cluster {
    host: String,
    account: PathBuf,
}

impl Cluster {
    /// The cluster whose API is at an address; the account is in a folder.
    pub fn new(host: &str, port: u16, account: PathBuf) -> Self {
        let host = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Self { host, account }
    }

    /// One value of a Secret, if both are there.
    pub async fn secret(&self, name: &SecretName, key: &str) -> Result<Option<String>, ClusterError> {
        let Some(secret) = self.call(Method::GET, name, None).await? else { return Ok(None) };
        let Some(value) = secret["data"][key].as_str() else { return Ok(None) };
        let value = Base64::decode_to_vec(value, None).map_err(|_| ClusterError::Malformed)?;
        Ok(String::from_utf8(value).ok())
    }

    /// Sets one value of a Secret, which is made if there is none.
    pub async fn put_secret(&self, name: &SecretName, key: &str, value: &str) -> Result<(), ClusterError> {
        let value = Base64::encode_to_string(value).map_err(|_| ClusterError::Malformed)?;
        let secret =
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name.0 }, "data": { key: value } });
        let set = self.call(Method::PATCH, name, Some(secret)).await?;
        set.map(drop).ok_or_else(|| ClusterError::Refused("there is no such namespace".to_owned()))
    }

    /// A call about a Secret; nothing if there is none. A body is applied by the server.
    async fn call(
        &self,
        method: Method,
        name: &SecretName,
        body: Option<Value>,
    ) -> Result<Option<Value>, ClusterError> {
        // Read anew each time: the kubelet replaces the token before it runs out.
        let (namespace, token, roots) = (self.read("namespace")?, self.read("token")?, self.read("ca.crt")?);
        let query = if body.is_some() { format!("?fieldManager={MANAGER}&force=true") } else { String::new() };
        let path = format!("https://{}/api/v1/namespaces/{}/secrets/{name}{query}", self.host, namespace.trim());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", token.trim()))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/apply-patch+yaml");
        // JSON is YAML.
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = request.body(Full::new(body)).map_err(|_| ClusterError::Malformed)?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls(&roots)?).https_only().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let unreachable = |error: &(dyn std::error::Error + 'static)| {
            ClusterError::Unreachable(drizzle_proto::net::innermost(error).to_string())
        };
        let answered = async {
            let response = client.request(request).await.map_err(|error| unreachable(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, LONGEST).collect().await.map_err(|error| unreachable(&*error))?;
            Ok((head.status, body.to_bytes()))
        };
        let late = |_| ClusterError::Unreachable(format!("no answer within {} s", TIMEOUT.as_secs()));
        let (status, body) = tokio::time::timeout(TIMEOUT, answered).await.map_err(late)??;
        let body = serde_json::from_slice::<Value>(&body);
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            _ if status.is_success() => body.map(Some).map_err(|_| ClusterError::Malformed),
            _ => {
                let why = body.ok().and_then(|body| body["message"].as_str().map(str::to_owned));
                Err(ClusterError::Refused(why.unwrap_or_else(|| status.to_string())))
            }
        }
    }

    fn read(&self, file: &str) -> Result<String, ClusterError> {
        let path = self.account.join(file);
        std::fs::read_to_string(&path).map_err(|source| ClusterError::Account { path, source })
    }
}

/// What the API is known by: the authority of the cluster, and no other.
fn tls(roots: &str) -> Result<ClientConfig, ClusterError> {
    let unusable = |error: &dyn fmt::Display| ClusterError::Unreachable(format!("ca.crt of the account: {error}"));
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(certificate.map_err(|error| unusable(&error))?).map_err(|error| unusable(&error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    Ok(config.map_err(|error| unusable(&error))?.with_root_certificates(store).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_those_that_a_path_can_take() {
        for good in ["drizzle-join", "a", "a.b-c9"] {
            assert_eq!(good.parse::<SecretName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "-a", "a-", "A", "a/b", "a?b", "..", &"a".repeat(254)] {
            assert_eq!(bad.parse::<SecretName>(), Err(NoSecretName), "{bad}");
        }
    }
}
