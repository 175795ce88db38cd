//! What is deployed listens where the daemons listen by default, and is controlled where peer-cli looks.

use drizzle_proto::net::control_at::SOCKET;

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

#[test]
fn images_and_units_are_controlled_at_the_socket_that_peer_cli_finds() {
    let tree = Tree::read();
    for file in ["deploy/Dockerfile", "deploy/systemd/drizzle-peer.service"] {
        let values: Vec<String> = tree.text(file).split("DRIZZLE_CONTROL=").skip(1).map(str::to_owned).collect();
        let [value] = &values[..] else { panic!("{file} says it once") };
        assert_eq!(value.split_whitespace().next(), Some(&*format!("unix:{SOCKET}")), "{file}");
    }
    for file in ["deploy/compose.yaml", "deploy/kubernetes/peer.yaml"] {
        let text = tree.text(file);
        assert!(!text.contains("DRIZZLE_CONTROL"), "{file} leaves it to the image");
        // The root of these is read-only.
        let folder = SOCKET.trim_end_matches("/peer.sock");
        assert!(text.contains(folder), "{file} has a writable {folder}");
    }
}
