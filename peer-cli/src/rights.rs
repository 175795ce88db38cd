//! Who may open a socket, in words for those who may not.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

/// Where groups have names; of others only the number is known.
const GROUPS: &str = "/etc/group";

/// What to do about a socket that this user may not open.
pub(crate) fn hint(socket: &Path) -> String {
    // If its folder may not be entered, it is the folder that says who may.
    let seen = socket.ancestors().find_map(|path| path.metadata().ok());
    let group = seen.filter(|seen| {
        let needed = if seen.file_type().is_socket() { 0o060 } else { 0o010 };
        seen.mode() & needed == needed
    });
    match group {
        Some(seen) => {
            let group = name(&fs::read_to_string(GROUPS).unwrap_or_default(), seen.gid());
            format!(
                "One must be in the group {group} for that: `sudo usermod -aG {group} USER`, then log in again; or run it as the daemon's user."
            )
        }
        None => "Only the daemon's user may: run it as that one.".to_owned(),
    }
}

/// A group's name in the words of `/etc/group`, or its number.
fn name(groups: &str, id: u32) -> String {
    let lines = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut named = lines.filter(|fields| fields.get(2).is_some_and(|field| field.parse() == Ok(id)));
    named.next().map_or_else(|| id.to_string(), |fields| fields[0].to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixListener};

    use super::*;

    #[test]
    fn a_group_is_called_by_its_name_if_it_has_one() {
        let groups = "root:x:0:\ndrizzle:x:998:anna,bert\nbroken\n";
        assert_eq!(name(groups, 998), "drizzle");
        assert_eq!(name(groups, 10001), "10001");
    }

    #[test]
    fn the_group_is_that_of_what_stands_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let group = name(&fs::read_to_string(GROUPS).unwrap_or_default(), path.metadata().unwrap().gid());
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(&path, 0o660);
        assert!(hint(&path).contains(&format!("in the group {group} ")), "{}", hint(&path));
        mode(&path, 0o640);
        assert!(hint(&path).contains("Only the daemon's user"), "to connect is to write");
        // As if it could not be looked at.
        fs::remove_file(&path).unwrap();
        mode(folder.path(), 0o710);
        assert!(hint(&path).contains(&format!("in the group {group} ")), "{}", hint(&path));
        mode(folder.path(), 0o700);
        assert!(hint(&path).contains("Only the daemon's user"));
    }
}
