//! A gRPC client that knows no `.proto` file: everything it says and reads comes from reflection.

use std::{env, path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    MIB,
    lab::{Lab, Recipe},
    share::Share,
};

/// A Python with grpcio and grpcio-reflection; the script `tests/containers` sets it.
const PYTHON: &str = "DRIZZLE_TEST_PYTHON";

#[tokio::test]
async fn a_client_without_the_schema_gets_readable_answers_and_proper_status_codes() {
    let lab = Lab::new("reflection").await;
    let share = Share::with("foo", 3 * MIB + 1);
    let tracker = lab.start(Recipe::tracker().publish(7400)).await;
    let seed = lab.start(Recipe::seed("seed", share.path())).await;
    seed.until_held("foo", 1).await;

    let ports = tracker.inspect().await.network_settings.and_then(|settings| settings.ports).expect("it has ports");
    let bound = ports["7400/tcp"].as_ref().and_then(|bindings| bindings[0].host_port.clone());
    let python = env::var(PYTHON).unwrap_or_else(|_| panic!("{PYTHON} is not set: run tests/containers"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/containers/reflection.py");
    let address = format!("127.0.0.1:{}", bound.expect("the port is published"));
    let output = Command::new(python).arg(script).arg(address).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seen: Value = serde_json::from_slice(&output.stdout).expect("the script prints JSON");

    for service in ["drizzle.v1.Tracker", "grpc.health.v1.Health"] {
        let services = seen["services"].as_array().expect("a list");
        assert!(services.contains(&json!(service)), "{service} is not among {services:?}");
    }
    assert_eq!(seen["health"], "SERVING");
    let file = &seen["files"]["files"][0];
    assert_eq!(file["file"]["name"], "foo");
    assert_eq!(file["file"]["size"], (3 * MIB + 1).to_string());
    assert_eq!(file["full_holders"], 1);
    assert_eq!(seen["locations"]["file"], file["file"]);
    assert_eq!(seen["locations"]["holders"][0]["peer_id"], seed.peer_id().await);
    // A person can compare a chunk's hash with what sha256sum says.
    let hashes = seen["locations"]["chunk_sha256"].as_array().expect("a list");
    assert_eq!(hashes.len() as u64, file["file"]["chunk_count"].as_u64().expect("a number"));
    let chunk_size = &file["file"]["chunk_size"];
    let first = seed.answer(&["sh", "-c", &format!("head -c {chunk_size} /share/foo | sha256sum")]).await;
    assert_eq!(first.split(' ').next(), hashes[0].as_str());

    let expected = json!({
        "a name that nobody registered": "NOT_FOUND",
        "a name that is a path upwards": "INVALID_ARGUMENT",
        "no name": "INVALID_ARGUMENT",
        "a page token that was never issued": "INVALID_ARGUMENT",
        "a peer id that is none": "INVALID_ARGUMENT",
        "a lease that is not known": "FAILED_PRECONDITION",
        "a watch of a name that nobody registered": "NOT_FOUND",
        "a method that does not exist": "UNIMPLEMENTED",
    });
    for (mistake, code) in expected.as_object().expect("an object") {
        assert_eq!(&seen["mistakes"][mistake]["code"], code, "{mistake}: {}", seen["mistakes"][mistake]);
        assert_ne!(seen["mistakes"][mistake]["details"], "", "{mistake} is answered without a word");
    }
}
