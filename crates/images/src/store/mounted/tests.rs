//! Mounts of processes in namespaces of their own, as the kernel shows them.

use super::*;

/// From Linux 6.8 on, or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    New,
    Old,
}

/// A directory like procfs: each task with its namespace, its root, and the names of the layers that it sees mounted.
struct Procfs(tempfile::TempDir, Tenants);

impl Procfs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap(), Tenants::default())
    }

    fn task(&self, path: &str, [namespace, root]: [&str; 2], layers: &[&str]) {
        let task = self.0.path().join(path);
        fs::create_dir_all(task.join("ns")).unwrap();
        std::os::unix::fs::symlink(namespace, task.join("ns/mnt")).unwrap();
        std::os::unix::fs::symlink(root, task.join("root")).unwrap();
        fs::write(task.join("mountinfo"), table(layers)).unwrap();
        self.flags(path, 0x40_0000);
    }

    fn flags(&self, path: &str, flags: u64) {
        // The name is the program's own choice.
        let stat = [b"1 (a) \xff) S 1 1 1 0 -1 ", flags.to_string().as_bytes(), b" 0"].concat();
        fs::write(self.0.path().join(path).join("stat"), stat).unwrap();
    }

    fn cgroup(&self, path: &str, cgroup: &str) {
        fs::write(self.0.path().join(path).join("cgroup"), format!("2:cpu:{cgroup}\n")).unwrap();
    }

    /// A task that has ended.
    fn ended(&self, path: &str) {
        fs::create_dir_all(self.0.path().join(path)).unwrap();
    }

    /// Which of the layers are left.
    fn left(&self, names: [&str; 3]) -> Result<Vec<String>> {
        self.left_on(Kernel::New, names)
    }

    fn left_on(&self, kernel: Kernel, names: [&str; 3]) -> Result<Vec<String>> {
        let mut left = names.map(str::to_owned).into();
        let place = Place { device: b"8:1".to_vec(), directory: b"/l/".to_vec() };
        let mut look = Look::new(&place, &self.1, &mut left);
        look.may_be_unnamed = kernel == Kernel::Old;
        look.whole = |_namespace| File::open("/dev/null").map(Some);
        look.is_roots = |_controllers, cgroup| !cgroup.starts_with("/user.slice");
        look.is_users = |namespace| fs::read_link(namespace).unwrap().to_string_lossy().contains("user");
        let mut processes: Vec<_> = fs::read_dir(self.0.path())?.map(|entry| entry.unwrap().path()).collect();
        processes.sort();
        processes.iter().try_for_each(|process| look.ask(process))?;
        let mut left: Vec<_> = left.into_iter().collect();
        left.sort();
        Ok(left)
    }
}

fn table(layers: &[&str]) -> String {
    layers.iter().map(|layer| format!("7 1 8:1 /l/{layer}/fs / rw - ext4 x rw\n")).collect()
}

#[test]
fn each_namespace_and_root_is_asked_once() {
    let procfs = Procfs::new();
    procfs.task("1", ["mnt:[1]", "/"], &["a"]);
    procfs.task("2", ["mnt:[1]", "/"], &["c"]);
    procfs.task("3", ["mnt:[1]", "/chroot"], &["b"]);
    assert_eq!(procfs.left(["a", "b", "c"]).unwrap(), ["c"]);
}

#[test]
fn a_container_whose_layers_are_leased_is_not_asked() {
    let procfs = Procfs::new();
    let (tenant, other) = ("ab".repeat(32), "cd".repeat(32));
    procfs.1.begin(&tenant);
    procfs.task("1", ["mnt:[1]", "/"], &["a"]);
    procfs.task("2", ["mnt:[2]", "/"], &["b"]);
    let cgroup = |task: &str, text: &str| fs::write(procfs.0.path().join(task).join("cgroup"), text).unwrap();
    // A cgroup that a container makes has any name.
    let own = [b"3:cpu:/kube/", tenant.as_bytes(), b"/x\xff\n0::/kube/", tenant.as_bytes(), b"\n"].concat();
    fs::write(procfs.0.path().join("1/cgroup"), own).unwrap();
    cgroup("2", &format!("0::/kube/{other}\n"));
    assert_eq!(procfs.left(["a", "b", "c"]).unwrap(), ["a", "c"]);
    cgroup("2", &format!("0::/wharf.slice/wharf-{tenant}.scope/payload\n"));
    assert_eq!(procfs.left(["a", "b", "c"]).unwrap(), ["a", "b", "c"]);
}

#[test]
fn a_process_without_its_main_thread_has_mounts() {
    let procfs = Procfs::new();
    procfs.ended("1");
    procfs.ended("1/task/1");
    procfs.task("1/task/2", ["mnt:[1]", "/"], &["b"]);
    assert_eq!(procfs.left(["a", "b", "c"]).unwrap(), ["a", "c"]);
}

/// Its main thread is in no cgroup of v1's any more.
#[test]
fn a_container_whose_layers_are_leased_is_not_asked_without_its_main_thread() {
    let procfs = Procfs::new();
    let tenant = "ab".repeat(32);
    procfs.1.begin(&tenant);
    for task in ["1", "1/task/1"] {
        procfs.ended(task);
        procfs.cgroup(task, "/");
    }
    procfs.task("1/task/2", ["mnt:[1]", "/"], &["a"]);
    procfs.cgroup("1/task/2", &format!("/kube/{tenant}"));
    assert_eq!(procfs.left(["a", "b", "c"]).unwrap(), ["a", "b", "c"]);
}

#[test]
fn what_exits_is_not_asked_and_the_other_threads_are() {
    let procfs = Procfs::new();
    procfs.task("1", ["mnt:[1]", "/"], &["a"]);
    procfs.task("1/task/2", ["mnt:[2]", "/"], &["b"]);
    procfs.flags("1", 0x40_0004);
    assert_eq!(procfs.left(["a", "b", "c"]).unwrap(), ["a", "c"]);
}

#[test]
fn a_user_of_the_host_is_not_asked_and_one_in_a_container_is() {
    let procfs = Procfs::new();
    let cgroups = ["/user.slice", &format!("/kube/{}", "cd".repeat(32)), "/user.slice"];
    for (at, (cgroup, layer)) in cgroups.iter().zip(["a", "b", "c"]).enumerate() {
        let namespace = format!("mnt:[{}{at}]", if at == 2 { "root" } else { "user" });
        procfs.task(&at.to_string(), [&namespace, "/"], &[layer]);
        procfs.cgroup(&at.to_string(), cgroup);
    }
    assert_eq!(procfs.left(["a", "b", "c"]).unwrap(), ["a"]);
    procfs.cgroup("0", &format!("/user.slice/{}", "cd".repeat(32)));
    assert_eq!(procfs.left(["a", "b", "c"]).unwrap(), ["a"], "a user's own cgroup may have any name");
    // The kernel may not tell.
    fs::remove_file(procfs.0.path().join("0/cgroup")).unwrap();
    assert!(procfs.left(["a", "b", "c"]).unwrap().is_empty());
}

#[test]
fn what_is_too_long_may_have_anything_mounted() {
    let procfs = Procfs::new();
    procfs.task("1", ["mnt:[1]", "/"], &["a"]);
    procfs.task("2", ["mnt:[1]", "/chroot"], &[]);
    let long = File::create(procfs.0.path().join("2/mountinfo")).unwrap();
    long.set_len(TABLE_LIMIT_BYTES - 30).unwrap();
    let error = procfs.left(["a", "b", "c"]).unwrap_err();
    assert!(error.to_string().contains("/2: it has more mounts"), "{error}");
    long.set_len(1 << 20).unwrap();
    assert_eq!(procfs.left(["a", "b", "c"]).unwrap(), ["b", "c"]);
}

/// An earlier release may have mounted it, but only on an older kernel.
#[test]
fn an_overlay_of_mere_numbers_may_have_anything_mounted() {
    let procfs = Procfs::new();
    procfs.task("1", ["mnt:[1]", "/"], &["a"]);
    procfs.task("2", ["mnt:[2]", "/"], &[]);
    let table = procfs.0.path().join("2/mountinfo");
    let line =
        |source: &str| format!("7 1 0:31 / / rw - overlay {source} rw,lowerdir=5:6,upperdir=7,workdir=8\n");
    fs::write(&table, line("overlay")).unwrap();
    assert_eq!(procfs.left(["a", "b", "c"]).unwrap(), ["b", "c"]);
    let error = procfs.left_on(Kernel::Old, ["a", "b", "c"]).unwrap_err();
    assert!(error.to_string().contains("/2: an overlay has numbers for its layers"), "{error}");
    let of_b = String::from_utf8(mark("b".as_ref()).into()).unwrap();
    fs::write(&table, line(&format!("layers-{of_b}"))).unwrap();
    assert_eq!(procfs.left_on(Kernel::Old, ["a", "b", "c"]).unwrap(), ["c"]);
}

#[test]
fn a_process_that_ended_is_passed_over_and_a_failure_is_not() {
    assert_eq!(of_living::<()>(Err(ErrorKind::NotFound.into())).unwrap(), None);
    assert!(of_living::<()>(Err(ErrorKind::OutOfMemory.into())).is_err());
    let temp = tempfile::tempdir().unwrap();
    let opened = File::open(temp.path()).unwrap();
    leave_unmounted(opened.as_fd(), &Tenants::default(), &mut HashSet::from(["a".to_owned()])).unwrap();
}

#[test]
fn the_layers_are_where_their_mount_has_them() {
    let table = b"20 1 8:1 / / rw - ext4 x rw\n21 20 8:2 /@/a\\040b /var\\040x rw - btrfs x rw\n";
    let place =
        |device: &str, directory: &str| Some(Place { device: device.into(), directory: directory.into() });
    assert_eq!(Place::found(table, "20", b"/l y"), place("8:1", "/l\\040y/"));
    assert_eq!(Place::found(table, "21", b"/var x/l"), place("8:2", "/@/a\\040b/l/"));
    assert_eq!(Place::found(table, "22", b"/l"), None);
}
