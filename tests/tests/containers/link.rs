//! How fast a container's link is: `tc` on the host's end of it, which outlives nothing but the
//! container's own network, and which no container needs any right for.

use std::process::Command;

use serde_json::Value;

/// Slows what flows towards the container whose first process is `pid`.
pub(crate) fn slow_down(pid: i64, megabits: u32) {
    let rate = format!("{megabits}mbit");
    let shape = ["root", "tbf", "rate", &rate, "burst", "256kb", "latency", "200ms"];
    run("tc", &[&["qdisc", "replace", "dev", &host_end(pid)], &shape[..]].concat());
}

/// Lets everything flow again.
pub(crate) fn open_up(pid: i64) {
    run("tc", &["qdisc", "del", "dev", &host_end(pid), "root"]);
}

/// The name of the host's end of a container's only link.
fn host_end(pid: i64) -> String {
    let inside = run("nsenter", &["-t", &pid.to_string(), "-n", "ip", "-j", "link", "show", "type", "veth"]);
    let index = list(&inside)[0]["link_index"].as_u64().expect("a veth names its other end");
    let outside = run("ip", &["-j", "link", "show", "type", "veth"]);
    let end = list(&outside).into_iter().find(|link| link["ifindex"].as_u64() == Some(index));
    end.and_then(|link| link["ifname"].as_str().map(str::to_owned)).expect("the other end is here")
}

fn list(json: &str) -> Vec<Value> {
    serde_json::from_str(json).expect("ip prints JSON")
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {complaint}", args.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
