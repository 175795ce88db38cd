//! A lease is kept whatever else goes on.

use std::{path::PathBuf, sync::Arc, time::Duration};

use drizzle_proto::{Address, Digest, FileName, Layout, Manifest, PeerId};
use drizzle_tests::{Cluster, until};
use peer_svc::{
    holdings::Holdings,
    register::{Advertise, Membership, Standing},
    store::stamp::Stamp,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_peer_with_ever_more_to_announce_keeps_its_lease() {
    const LEASE: Duration = Duration::from_secs(3);
    let cluster = Cluster::with_tracker_args(["--lease", "3s"]).await;
    let holdings = Arc::new(Holdings::default());
    let standing = watch::Sender::new(Standing::default());
    let (notices, _noticed) = mpsc::channel(1);
    let membership = Membership {
        tracker: cluster.tracker.client(),
        tracker_address: cluster.tracker.address(),
        labels: Default::default(),
        peer: PeerId::from_bytes([7; 16]),
        advertise: Advertise::Fixed(Address::new("127.0.0.1:1").unwrap()),
        holdings: holdings.clone(),
        standing: standing.clone(),
        notices,
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(membership.run(stop.clone()));
    let lease = until("a lease", async || standing.borrow().lease).await;

    let layout = Layout::new(1, 1 << 14).unwrap();
    let stamp = Stamp { size: 1, modified_nanos: 0 };
    let mut changes = standing.subscribe();
    changes.mark_unchanged();
    let mut news = tokio::time::interval(Duration::from_millis(5));
    let end = tokio::time::Instant::now() + 3 * LEASE;
    for number in 0u32.. {
        news.tick().await;
        let manifest = Manifest::new(layout, vec![Digest::of(&number.to_be_bytes())]).unwrap();
        holdings.insert_shared(FileName::new(&format!("file-{number}")).unwrap(), manifest, PathBuf::new(), stamp);
        assert_eq!(standing.borrow().lease, Some(lease), "after {number} announcements");
        assert!(!changes.has_changed().unwrap(), "it was never lost in between");
        if tokio::time::Instant::now() > end {
            break;
        }
    }
    stop.cancel();
    running.await.unwrap();
}
