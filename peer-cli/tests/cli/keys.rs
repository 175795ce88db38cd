//! Keys: made, never overwritten, kept from others; and what is signed with them.

use std::{fs, io::Write, os::unix::fs::PermissionsExt, path::Path, process::Stdio};

use drizzle_proto::wire::{self, share_event::Event, share_result::Status};

use crate::support::*;

/// Runs a command that needs no daemon, with a text on stdin.
fn run(args: &[&str], stdin: &str) -> Ran {
    let mut child = command("127.0.0.1:1", args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended without reading.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap().into()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn a_new_key_is_its_owners_alone_and_takes_the_place_of_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.key");
    let (text, public) = (path.to_str().unwrap(), folder.path().join("a.key.pub"));
    let ran = run(&["key", "new", "--no-password", text], "");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!((mode(&path), mode(&public) & 0o600), (0o600, 0o600));
    let line = fs::read_to_string(&public).unwrap().lines().nth(1).unwrap().to_owned();
    for part in [line.as_str(), "--sign", "--trust", "a.key.pub"] {
        assert!(ran.stdout.contains(part), "{part}: {ran:?}");
    }
    let made = fs::read(&path).unwrap();
    let ran = run(&["key", "new", "-W", text], "");
    assert!(ran.code == Some(6) && ran.stderr.contains("exists, and nothing is overwritten"), "{ran:?}");
    assert_eq!(fs::read(&path).unwrap(), made);
    fs::remove_file(&path).unwrap();
    assert_eq!(run(&["key", "new", "-W", text], "").code, Some(6), "its public half would be overwritten");
    assert!(!path.exists());
    let other = folder.path().join("b");
    let ran = run(&["--json", "key", "new", "-W", other.to_str().unwrap()], "");
    assert_eq!(ran.json()[0]["public_key"], format!("{}.pub", other.display()));
}

#[test]
fn a_password_is_asked_for_and_a_wrong_one_signs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let text = path.to_str().unwrap();
    for (stdin, why) in [("", "no terminal to ask"), ("\n", "protects nothing")] {
        let ran = run(&["key", "new", text], stdin);
        assert!(ran.code == Some(2) && ran.stderr.contains(why), "{ran:?}");
        assert!(!path.exists());
    }
    assert_eq!(run(&["key", "new", text], "secret\n").code, Some(0));
    assert!(fs::read_to_string(&path).unwrap().contains("encrypted"));
    let ran = run(&["share", "x", "--sign", text], "wrong\n");
    assert!(ran.code == Some(2) && ran.stderr.contains("Wrong password"), "{ran:?}");
    // The next thing that is missing is the daemon.
    assert_eq!(run(&["share", "x", "--sign", text], "secret\n").code, Some(5));
}

#[test]
fn what_is_no_secret_key_is_told_before_anything_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    let (path, public) = (folder.path().join("key"), folder.path().join("key.pub"));
    assert_eq!(run(&["key", "new", "-W", path.to_str().unwrap()], "").code, Some(0));
    let damaged = folder.path().join("damaged");
    let mut text = fs::read(&path).unwrap();
    // In the key itself, of which a checksum tells.
    let at = text.len() - 100;
    text[at] = if text[at] == b'A' { b'B' } else { b'A' };
    fs::write(&damaged, text).unwrap();
    for (path, code) in [(&public, 2), (&damaged, 2), (&folder.path().join("away"), 3)] {
        let ran = run(&["share", "x", "--sign", path.to_str().unwrap()], "");
        assert!(ran.code == Some(code) && ran.stderr.contains(path.to_str().unwrap()), "{ran:?}");
    }
}

#[test]
fn a_file_that_is_not_offered_for_want_of_a_signature_is_exit_code_8() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    assert_eq!(run(&["key", "new", "-W", path.to_str().unwrap()], "").code, Some(0));
    let result = |name: &str| {
        let (file, detail) = (Some(file(name)), "it is not signed".to_owned());
        Event::Result(wire::ShareResult { status: Status::Untrusted.into(), file, detail })
    };
    let daemon = Daemon::start(Script { share: vec![result("a")].into(), ..Script::default() });
    let ran = daemon.run(&["share", "a"]);
    assert!(ran.code == Some(8) && ran.stdout.contains("not offered a: it is not signed"), "{ran:?}");
    // Nor is one that was signed by a key which the daemon does not trust.
    let ran = daemon.run(&["share", "a", "--sign", path.to_str().unwrap()]);
    assert!(ran.code == Some(8) && ran.stdout.contains("not signed: that key is not trusted"), "{ran:?}");
    let ran = daemon.run(&["--json", "share", "a"]);
    assert_eq!(ran.json()[0]["status"], "untrusted");
}
