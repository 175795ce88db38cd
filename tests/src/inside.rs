//! A peer in this process, for a test that looks at its tasks or its memory.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use drizzle_proto::{Address, RateLimit, net::shell::LogFormat};

/// What a peer with this folder is started with. Another seed makes another peer.
pub fn peer_config(tracker: Address, dir: PathBuf, seed: u64) -> peer_svc::Config {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    peer_svc::Config {
        tracker,
        label: Vec::new(),
        listen: any,
        control: any.into(),
        allow_path: Vec::new(),
        metrics: None,
        dir,
        state_dir: None,
        advertise: None,
        exclude: Vec::new(),
        trust: Vec::new(),
        settle: Duration::ZERO,
        look_every: Duration::from_secs(60),
        watch: false,
        no_watch: true,
        upload_slots: 4,
        up: RateLimit::UNLIMITED,
        down: RateLimit::UNLIMITED,
        drain: Duration::from_secs(10),
        seed: Some(seed),
        tls: Default::default(),
        join: None,
        join_file: None,
        log_format: LogFormat::Text,
    }
}
