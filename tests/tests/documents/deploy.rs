//! What is deployed listens where the daemons listen by default, is controlled where peer-cli looks, and is watched where it
//! tells its numbers.

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

#[test]
fn monitors_ask_where_the_images_answer() {
    let tree = Tree::read();
    let image = tree.text("deploy/Dockerfile");
    let ports: Vec<&str> = image.split("DRIZZLE_METRICS=[::]:").skip(1).filter_map(|rest| rest.get(..4)).collect();
    let [tracker, peer] = ports[..] else { panic!("two images: {ports:?}") };
    let asked = tree.text("deploy/monitoring/prometheus.yaml");
    for (port, manifest) in [(tracker, "deploy/kubernetes/tracker.yaml"), (peer, "deploy/kubernetes/peer.yaml")] {
        assert!(asked.contains(&format!("port: {port}")), "prometheus.yaml asks at {port}");
        let manifest = tree.text(manifest);
        assert!(manifest.contains(&format!("prometheus.io/port: \"{port}\"")), "{port} is annotated");
        assert!(manifest.contains(&format!("containerPort: {port}")), "{port} is named");
        assert!(
            tree.text("deploy/kubernetes/network-policy.yaml").contains(&format!("port: {port}")),
            "{port} is let in"
        );
    }
}

/// A rule about a metric that is not there is silent for ever.
#[test]
fn alerts_and_boards_are_about_metrics_that_are_documented() {
    let tree = Tree::read();
    let readme = tree.text("README.md");
    for file in ["deploy/monitoring/alerts.yaml", "deploy/monitoring/grafana/drizzle.json"] {
        let text = tree.text(file);
        let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
        let words = text.split(|c| !is_part(c)).filter(|word| {
            ["drizzle_peer_", "drizzle_tracker_", "process_"].iter().any(|prefix| word.starts_with(prefix))
        });
        let mut count = 0;
        for word in words {
            let name = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            let is_documented = ["`", "{"].iter().any(|end| readme.contains(&format!("| `{name}{end}")));
            assert!(is_documented, "{file}: {word} is not in the README's table");
            count += 1;
        }
        assert!(count > 5, "{file} has rules: {count}");
    }
}
