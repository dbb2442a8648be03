//! Users and groups, from /etc/passwd and /etc/group (a static binary has no name service).

use std::path::Path;

/// A user to run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
    pub shell: String,
}

/// Finds `NAME`, `UID`, and either with `:GROUP` or `:GID`.
pub fn find(wanted: &str) -> Result<User, String> {
    let passwd = read(Path::new("/etc/passwd"));
    let group = read(Path::new("/etc/group"));
    find_in(wanted, &passwd, &group)
}

fn read(path: &Path) -> String {
    // A guest without these files has numbers only.
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

fn find_in(wanted: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (user_part, group_part) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let number = user_part.parse::<u32>().ok();
    let known = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else {
            return None;
        };
        let (uid, gid) = (uid.parse::<u32>().ok()?, gid.parse::<u32>().ok()?);
        (name == user_part || number == Some(uid)).then(|| User {
            name: name.to_owned(),
            uid,
            gid,
            groups: Vec::new(),
            home: home.to_owned(),
            shell: shell.to_owned(),
        })
    });
    let mut user = match (known, number) {
        (Some(user), _) => user,
        (None, Some(uid)) => User {
            name: user_part.to_owned(),
            uid,
            gid: uid,
            groups: Vec::new(),
            home: "/".to_owned(),
            shell: "/bin/sh".to_owned(),
        },
        (None, None) => return Err(format!("the guest has no user {user_part:?}")),
    };
    let mut named_group = None;
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, members] = fields[..] else {
            continue;
        };
        let Ok(gid) = gid.parse::<u32>() else {
            continue;
        };
        if group_part == Some(name) {
            named_group = Some(gid);
        }
        if members.split(',').any(|member| member == user.name) {
            user.groups.push(gid);
        }
    }
    if let Some(part) = group_part {
        user.gid = named_group
            .or_else(|| part.parse().ok())
            .ok_or_else(|| format!("the guest has no group {part:?}"))?;
    }
    if !user.groups.contains(&user.gid) {
        user.groups.push(user.gid);
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::find_in;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1000:1000:,,,:/home/ann:/bin/zsh\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:bob,ann\nvideo:x:44:ann\nann:x:1000:\n";

    #[test]
    fn names_numbers_and_groups_are_found() {
        let ann = find_in("ann", PASSWD, GROUP).unwrap();
        assert_eq!(
            (ann.uid, ann.gid, ann.home.as_str()),
            (1000, 1000, "/home/ann")
        );
        assert_eq!(ann.groups, [27, 44, 1000]);
        assert_eq!(find_in("1000:video", PASSWD, GROUP).unwrap().gid, 44);
        assert_eq!(find_in("4711", PASSWD, GROUP).unwrap().uid, 4711);
        assert!(find_in("nobody", PASSWD, GROUP).is_err());
        assert!(find_in("ann:nogroup", PASSWD, GROUP).is_err());
    }
}
