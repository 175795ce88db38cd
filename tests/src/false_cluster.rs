//! The API of a Kubernetes cluster, as far as a tracker in a pod uses it: Secrets of one namespace, over TLS.

use std::{
    collections::HashMap,
    convert::Infallible,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use drizzle_proto::net::tls::{Certified, authority::Authority};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prost::bytes::Bytes;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

const TOKEN: &str = "the pod's own token";
const SECRETS: &str = "/api/v1/namespaces/fleet/secrets/";

#[derive(Debug, Default)]
struct Kept {
    secrets: HashMap<String, Value>,
    /// The pod's account has no rights.
    forbids: bool,
}

/// The cluster. Dropped, it is gone.
#[derive(Debug)]
pub struct FalseCluster {
    /// Where its API listens.
    pub address: SocketAddr,
    /// The mounted account of the one pod.
    pub account: PathBuf,
    kept: Arc<Mutex<Kept>>,
    _serving: AbortOnDropHandle<()>,
}

impl FalseCluster {
    /// Starts one; the account is put into a folder.
    ///
    /// # Panics
    /// If it cannot.
    pub async fn start(folder: &Path) -> Self {
        let now = SystemTime::now();
        let (root, key) = Authority::generate(now).expect("an authority");
        let authority = Authority::from_pem(&root, &key).expect("it is one");
        let names = ["127.0.0.1".to_owned()];
        let issued = authority.issue(Certified::Tracker, &names, now, Duration::from_secs(3600));
        let (key, chain) = issued.expect("a certificate");
        let (shown, root) = chain.to_pem().expect("it can be written");
        let account = folder.join("account");
        fs::create_dir_all(&account).expect("a folder");
        for (file, text) in [("ca.crt", &*root), ("token", TOKEN), ("namespace", "fleet")] {
            fs::write(account.join(file), text).expect("a file");
        }
        let shown = CertificateDer::pem_slice_iter(shown.as_bytes()).collect::<Result<_, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_slice(key.to_pem().as_bytes()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth().with_single_cert(shown, key).expect("they match");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let kept = Arc::new(Mutex::new(Kept::default()));
        let shared = kept.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, kept) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = service_fn(|request| answer(kept.clone(), request));
                    // A client that leaves is none of its concern.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { address, account, kept, _serving: AbortOnDropHandle::new(serving) }
    }

    /// A Secret, as it was last applied.
    ///
    /// # Panics
    /// If a request panicked.
    pub fn secret(&self, name: &str) -> Option<Value> {
        self.kept.lock().expect("nobody panics with it").secrets.get(name).cloned()
    }

    /// Somebody deletes all Secrets, and takes the account's rights or gives them.
    ///
    /// # Panics
    /// If a request panicked.
    pub fn forbids(&self, forbids: bool) {
        *self.kept.lock().expect("nobody panics with it") = Kept { forbids, ..Kept::default() };
    }
}

async fn answer(kept: Arc<Mutex<Kept>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let says = |status: StatusCode, body: &Value| {
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        *response.status_mut() = status;
        Ok(response)
    };
    let refused = |status: StatusCode, message: &str| says(status, &json!({ "kind": "Status", "message": message }));
    let bearer = head.headers.get("authorization").and_then(|value| value.to_str().ok());
    if bearer != Some(&format!("Bearer {TOKEN}")) {
        return refused(StatusCode::UNAUTHORIZED, "Unauthorized");
    }
    let Some(name) = head.uri.path().strip_prefix(SECRETS).map(str::to_owned) else {
        return refused(StatusCode::NOT_FOUND, "there is no such path");
    };
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut kept = kept.lock().expect("nobody panics with it");
    if kept.forbids {
        return refused(StatusCode::FORBIDDEN, "secrets is forbidden: the account may not get it");
    }
    match head.method {
        Method::GET => match kept.secrets.get(&name) {
            Some(secret) => says(StatusCode::OK, secret),
            None => refused(StatusCode::NOT_FOUND, "secrets not found"),
        },
        Method::PATCH => {
            let query = head.uri.query().unwrap_or_default();
            let kind = head.headers.get("content-type").and_then(|kind| kind.to_str().ok());
            let secret = serde_json::from_slice::<Value>(&body).unwrap_or_default();
            let applies = kind == Some("application/apply-patch+yaml") && query.contains("fieldManager=");
            if !applies || secret["metadata"]["name"] != *name || secret["kind"] != "Secret" {
                return refused(StatusCode::BAD_REQUEST, "this is no such patch");
            }
            kept.secrets.insert(name, secret.clone());
            says(StatusCode::CREATED, &secret)
        }
        _ => refused(StatusCode::METHOD_NOT_ALLOWED, "no"),
    }
}
