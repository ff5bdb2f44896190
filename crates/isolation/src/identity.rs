//! The identity of a process: numbers and names, looked up in the container's own `passwd` and `group`.
//!
//! Both files are the image's or a volume's, so they are hostile: they are opened below the root, and what is read of
//! them is bounded. The host's users are never asked.

use nix::errno::Errno;
use wharf_sys::fs::{Descriptors, Resolve};
use wharf_types::{ContainerPath, Field, IdMaps, OwnerId};

use crate::error::Error;
use crate::plan::User;
use crate::root::Root;

/// How much of `/etc/passwd` or `/etc/group` is read, in bytes: an image decides how long they are.
const FILE_LIMIT_BYTES: usize = 10 << 20;

/// The most groups of a user, and the longest home directory: both are reported to the supervisor in one message.
const GROUPS_LIMIT: usize = 4000;
const HOME_LIMIT_BYTES: usize = 4096;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// The user.
    pub uid: OwnerId,
    /// The primary group.
    pub gid: OwnerId,
    /// All groups, each once, sorted as the kernel keeps them: the primary group, those of the image, those of the
    /// request.
    pub groups: Vec<OwnerId>,
    /// The user's home directory in `passwd`.
    pub home: Option<String>,
}

impl Identity {
    /// The host's number of the user.
    ///
    /// # Errors
    /// The user namespace does not have the user, or one of the groups.
    pub(crate) fn on_host(&self, ids: Option<IdMaps>) -> Result<u32, Error> {
        let Some(ids) = ids else { return Ok(self.uid.number()) };
        let missing = |what, id: OwnerId| {
            let problem = "is not in the pod's user namespace, which has fewer ids";
            Error::Identity { what, name: id.to_string(), problem }
        };
        for &group in self.groups.iter().chain([&self.gid]) {
            ids.groups.on_host(group.number()).ok_or_else(|| missing("group", group))?;
        }
        ids.users.on_host(self.uid.number()).ok_or_else(|| missing("user", self.uid))
    }
}

/// Resolves a user with the files of a root file system. They are opened through this process's descriptors.
pub(crate) fn resolve(root: &Root, own: &Descriptors, user: &User) -> Result<Identity, Error> {
    let passwd = read(root, own, "/etc/passwd")?;
    let group = read(root, own, "/etc/group")?;
    look_up(user, &passwd, &group)
}

fn read(root: &Root, own: &Descriptors, path: &str) -> Result<String, Error> {
    let fail = |source| Error::ContainerPath { what: "file", path: path.to_owned(), source };
    let name = ContainerPath::new(path)
        .map_err(|_never| fail(wharf_sys::Error::new("openat2", path, Errno::EINVAL)))?;
    // An image may have a FIFO there, or a device.
    let file = match own.open_regular(root.fd(), name.relative(), Resolve::InRoot) {
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ENOTDIR) => return Ok(String::new()),
        other => other.map_err(fail)?,
    };
    let bytes = wharf_sys::fs::read_bounded(&file, FILE_LIMIT_BYTES).map_err(fail)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A name, or a checked number. Digits are never a name, so that no image can map `1000` to root.
enum Who<'a> {
    Id(OwnerId),
    Name(&'a str),
}

fn parse<'a>(what: &'static str, text: &'a str) -> Result<Who<'a>, Error> {
    let fail = |problem| Error::Identity { what, name: text.chars().take(80).collect(), problem };
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return OwnerId::parse(text).map(Who::Id).ok_or_else(|| fail("is out of range"));
    }
    let first = text.chars().next().unwrap_or(' ');
    if Field::new(text).is_none() || first.is_whitespace() || matches!(first, '-' | '+') {
        return Err(fail("is not a name"));
    }
    Ok(Who::Name(text))
}

fn look_up(user: &User, passwd: &str, group: &str) -> Result<Identity, Error> {
    let name = if user.user.is_empty() { "0" } else { &user.user };
    let who = parse("user", name)?;
    let entry = passwd.lines().filter_map(PasswdEntry::parse).find(|entry| match who {
        Who::Id(uid) => entry.uid == uid,
        Who::Name(name) => entry.name == name,
    });
    let missing = |what, name: &str| Error::Identity {
        what,
        name: name.to_owned(),
        problem: "is not in the image, or has no possible number there",
    };
    let uid = match (&who, &entry) {
        (Who::Id(uid), _) => *uid,
        (Who::Name(_), Some(entry)) => entry.uid,
        (Who::Name(name), None) => return Err(missing("user", name)),
    };
    let gid = if user.group.is_empty() {
        entry.as_ref().map_or(OwnerId::ROOT, |entry| entry.gid)
    } else {
        match parse("group", &user.group)? {
            Who::Id(gid) => gid,
            Who::Name(name) => group_entries(group)
                .find_map(|(group, gid, _)| (group == name).then_some(gid))
                .ok_or_else(|| missing("group", name))?,
        }
    };
    let mut groups = vec![gid];
    if let (Some(entry), false) = (&entry, user.strict) {
        let member = |members: &str| members.split(',').any(|member| member == entry.name);
        groups.extend(group_entries(group).filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid));
    }
    groups.extend(&user.additional_groups);
    groups.sort_unstable();
    groups.dedup();
    if groups.len() > GROUPS_LIMIT {
        let problem = "is in more than 4000 groups";
        return Err(Error::Identity { what: "user", name: name.to_owned(), problem });
    }
    let home = entry.map(|entry| entry.home).filter(|home| home.len() <= HOME_LIMIT_BYTES);
    let home = home.filter(|home| Field::new(home).is_some()).map(str::to_owned);
    Ok(Identity { uid, gid, groups, home })
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: OwnerId,
    gid: OwnerId,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (OwnerId::parse(fields.next()?)?, OwnerId::parse(fields.next()?)?);
        let home = fields.nth(1).unwrap_or("/");
        Some(Self { name, uid, gid, home })
    }
}

/// The name, number and members of each group.
fn group_entries(text: &str) -> impl Iterator<Item = (&str, OwnerId, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = OwnerId::parse(fields.next()?)?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1001:me:/home/me:/bin/sh\nbad line\n4294967296:x:0:0::/:\n1e3:x:0:0::/:\n";
    const GROUP: &str = "root:x:0:\nextra:x:50000:me,other\nbroken\n";

    fn id(number: u32) -> OwnerId {
        OwnerId::new(number).unwrap()
    }

    fn numbers(groups: &[OwnerId]) -> Vec<u32> {
        groups.iter().map(|group| group.number()).collect()
    }

    fn who(user: &str, group: &str) -> Result<Identity, Error> {
        let user =
            User { user: user.into(), group: group.into(), additional_groups: vec![id(1234)], strict: false };
        look_up(&user, PASSWD, GROUP)
    }

    #[test]
    fn names_and_numbers_are_found() {
        let me = who("me", "").unwrap();
        assert_eq!((me.uid, me.gid, numbers(&me.groups)), (id(1000), id(1001), vec![1001, 1234, 50000]));
        assert_eq!(me.home.as_deref(), Some("/home/me"));
        assert_eq!(who("1000", "").unwrap(), me);
        assert_eq!(who("me", "extra").unwrap().gid, id(50000));
        assert_eq!(numbers(&who("77", "").unwrap().groups), vec![0, 1234]);
        assert_eq!(who("", "").unwrap().uid, OwnerId::ROOT);
    }

    /// Somebody waits until the FIFO is opened for reading, and goes on as soon as it is.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the directory is the test's own")]
    fn only_a_regular_file_is_opened_to_find_a_user() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let fifo = root.path().join("etc/passwd");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let path = fifo.clone();
        let writer = std::thread::spawn(move || std::fs::OpenOptions::new().write(true).open(path).map(drop));
        let own = Descriptors::own().unwrap();
        let resolve = || {
            let root = Root::mounted(root.path().to_str().unwrap()).unwrap();
            resolve(&root, &own, &User::default()).map_err(|error| error.line())
        };
        let error = resolve().unwrap_err();
        assert!(error.contains("/etc/passwd") && error.contains("not a regular file"), "{error}");
        assert!(!writer.is_finished(), "the FIFO was opened");
        drop(std::fs::File::open(&fifo).unwrap());
        writer.join().unwrap().unwrap();
        std::fs::remove_file(&fifo).unwrap();
        assert_eq!(resolve().unwrap().uid, OwnerId::ROOT);
    }

    #[test]
    fn groups_have_a_limit_and_are_not_cut() {
        let group: String = (0..4001).map(|gid| format!("g{gid}:x:{gid}:me\n")).collect();
        let me = User { user: "me".into(), ..User::default() };
        let error = look_up(&me, PASSWD, &group).unwrap_err();
        assert!(error.to_string().contains("4000 groups"), "{error}");
        let fewer = group.split_once('\n').unwrap().1.split_once('\n').unwrap().1;
        assert_eq!(look_up(&me, PASSWD, fewer).unwrap().groups.len(), 3999);
    }

    #[test]
    fn strict_leaves_the_images_groups_out() {
        let user =
            User { user: "me".into(), additional_groups: vec![id(7)], strict: true, ..User::default() };
        assert_eq!(numbers(&look_up(&user, PASSWD, GROUP).unwrap().groups), vec![7, 1001]);
    }

    #[test]
    fn whom_a_user_namespace_does_not_have_is_named() {
        use wharf_types::IdRange;
        let ids = IdMaps {
            users: IdRange::new(100_000, 1001).unwrap(),
            groups: IdRange::new(200_000, 50_001).unwrap(),
        };
        assert_eq!(who("me", "").unwrap().on_host(Some(ids)).unwrap(), 101_000);
        assert_eq!(who("me", "").unwrap().on_host(None).unwrap(), 1000);
        for (user, group, words) in
            [("1001", "", "user \"1001\" is not"), ("0", "50001", "group \"50001\" is not")]
        {
            let error = who(user, group).unwrap().on_host(Some(ids)).unwrap_err();
            assert!(error.to_string().starts_with(words), "{error}");
        }
    }

    #[test]
    fn nothing_becomes_root_by_accident() {
        for bad in [
            "4294967295",
            "4294967296",
            "99999999999999999999",
            "+1",
            "-1",
            " 1",
            "a:b",
            "a\nb",
            "nobody-here",
        ] {
            assert!(who(bad, "").is_err(), "{bad:?}");
            assert!(who("0", bad).is_err(), "group {bad:?}");
        }
        assert_eq!(who("00", "").unwrap().uid, OwnerId::ROOT, "digits are a number");
        assert_eq!(who("1e3", "").unwrap().uid, OwnerId::ROOT, "a name that passwd has");
    }

    #[test]
    fn an_image_has_nobody_with_the_kernels_word_for_no_change() {
        let passwd = "odd:x:4294967295:7::/:\nstray:x:7:4294967295::/:\nme:x:8:8::/:\n";
        let group = "odd:x:4294967295:me\n";
        for (user, group_name) in [("odd", ""), ("stray", ""), ("me", "odd"), ("4294967295", "")] {
            let user = User { user: user.into(), group: group_name.into(), ..User::default() };
            let error = look_up(&user, passwd, group).unwrap_err();
            assert!(matches!(error, Error::Identity { .. }), "{error}");
        }
        let me = look_up(&User { user: "me".into(), ..User::default() }, passwd, group).unwrap();
        assert_eq!(numbers(&me.groups), vec![8], "the group without a number is not among them");
    }
}
