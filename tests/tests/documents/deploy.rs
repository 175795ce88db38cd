//! What is deployed listens where the daemons listen by default.

use crate::tree::Tree;

#[test]
fn images_and_units_listen_on_both_address_families() {
    let tree = Tree::read();
    let mut listens = 0;
    for file in ["deploy/Dockerfile", "deploy/systemd/drizzle-peer.service", "deploy/systemd/drizzle-tracker.service"] {
        for value in tree.text(file).split("DRIZZLE_LISTEN=").skip(1) {
            let address = value.split_whitespace().next().unwrap_or_default();
            assert!(address.starts_with("[::]:"), "{file}: {address}");
            listens += 1;
        }
    }
    assert_eq!(listens, 4, "two images, two units");
    for file in ["deploy/compose.yaml", "deploy/kubernetes/tracker.yaml", "deploy/kubernetes/peer.yaml"] {
        assert!(!tree.text(file).contains("DRIZZLE_LISTEN"), "{file} leaves it to the image");
    }
}
