//! Containers as the kernel makes them, each by a child of this program, which has one thread and its namespaces to
//! itself.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test, though the harness is its own"
)]

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::CloneFlags;
use wharf_isolation::{
    Identity, JoinPlan, Limit, MountPlan, Origin, Others, Outline, Place, Plan, PodNamespaces, Report,
    Source, Stream, Streams, Traits, User,
};
use wharf_sys::capabilities::Capabilities;
use wharf_sys::clone::{Clone, SingleThreaded, clone};
use wharf_sys::mount::{Attributes, Propagation};
use wharf_sys::process::{Ended, Reap, await_end, exit_now, kill, open_pidfd, wait};
use wharf_sys::scheduling::Scheduling;
use wharf_sys::socket;
use wharf_types::signal::SIGKILL;
use wharf_types::{ErrorKind, OwnerId};

#[path = "rig/plan.rs"]
mod rig;

use rig::{host, inner, mount, plan, pod};

/// A test: its name and its function.
type Case = (&'static str, fn(&SingleThreaded));

const CASES: [Case; 23] = [
    ("a_plan_with_a_bad_part_makes_nothing", a_plan_with_a_bad_part_makes_nothing),
    ("an_outline_is_of_its_plan", an_outline_is_of_its_plan),
    ("a_program_runs_in_its_root_with_what_it_was_given", a_program_runs_in_its_root_with_what_it_was_given),
    ("devices_links_and_covers_are_the_containers", devices_links_and_covers_are_the_containers),
    ("no_link_leads_a_new_file_system_elsewhere", no_link_leads_a_new_file_system_elsewhere),
    ("no_link_leads_a_mount_over_the_root", no_link_leads_a_mount_over_the_root),
    ("an_image_is_a_volume_that_cannot_be_written", an_image_is_a_volume_that_cannot_be_written),
    ("no_link_of_an_image_leads_out_of_it", no_link_of_an_image_leads_out_of_it),
    ("a_read_only_root_cannot_be_written", a_read_only_root_cannot_be_written),
    ("of_the_pods_files_only_those_of_the_plan_are_seen", of_the_pods_files_only_those_of_the_plan_are_seen),
    ("rights_are_those_of_the_plan", rights_are_those_of_the_plan),
    ("a_program_runs_beside_others_as_the_plan_says", a_program_runs_beside_others_as_the_plan_says),
    ("a_shared_root_is_shared_and_no_other_is", a_shared_root_is_shared_and_no_other_is),
    ("traits_that_the_kernel_refuses_are_named", traits_that_the_kernel_refuses_are_named),
    ("a_missing_source_is_named", a_missing_source_is_named),
    ("an_image_is_at_fault_for_what_is_in_the_way", an_image_is_at_fault_for_what_is_in_the_way),
    ("an_unknown_user_is_named", an_unknown_user_is_named),
    ("a_working_directory_that_is_a_file_is_named", a_working_directory_that_is_a_file_is_named),
    (
        "a_working_directory_that_is_a_descriptor_of_the_hosts_is_named",
        a_working_directory_that_is_a_descriptor_of_the_hosts_is_named,
    ),
    ("a_missing_program_is_named_and_nothing_runs", a_missing_program_is_named_and_nothing_runs),
    ("of_what_the_user_may_not_read_nothing_is_told", of_what_the_user_may_not_read_nothing_is_told),
    ("a_program_is_named_under_any_limit", a_program_is_named_under_any_limit),
    ("another_process_joins_and_is_born_there", another_process_joins_and_is_born_there),
];

fn main() -> ExitCode {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let witness = SingleThreaded::check().unwrap();
    let (own, mut passed, mut failed) = (std::process::id(), 0, 0);
    for (name, case) in CASES.iter().filter(|(name, _)| filter.as_ref().is_none_or(|it| name.contains(it))) {
        let ended = catch_unwind(AssertUnwindSafe(|| case(&witness)));
        if std::process::id() != own {
            // A child of the case panicked, and must not go on with the others.
            exit_now(101);
        }
        let (count, word) = if ended.is_ok() { (&mut passed, "ok") } else { (&mut failed, "FAILED") };
        *count += 1;
        eprintln!("test {name} ... {word}");
    }
    // In the form of the usual harness, whose results `hack/test` adds up.
    let word = if failed == 0 { "ok" } else { "FAILED" };
    eprintln!("test result: {word}. {passed} passed; {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn namespaces([mounts, empty]: &[OwnedFd; 2]) -> PodNamespaces<'_> {
    PodNamespaces {
        net: None,
        ipc: None,
        uts: None,
        user: None,
        mounts: mounts.as_fd(),
        empty: empty.as_fd(),
    }
}

/// The outcome of a container or a command.
#[derive(Debug)]
struct Outcome {
    ended: Ended,
    output: String,
    /// The message if it failed.
    failure: Option<(ErrorKind, String)>,
}

/// A running child, and the supervisor's ends.
struct Running {
    process: OwnedFd,
    line: OwnedFd,
    output: OwnedFd,
}

/// Makes a child in a PID namespace of its own, or in this one for the namespace of others.
fn child(witness: &SingleThreaded, place: Place<'_>, body: impl FnOnce(&Streams, Origin<'_>)) -> Running {
    let (line, theirs) = socket::pair().unwrap();
    let (output, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    let namespaces = if matches!(place, Place::New) { CloneFlags::CLONE_NEWPID } else { CloneFlags::empty() };
    match clone(witness, namespaces, None).unwrap() {
        Clone::Child(child) => {
            let copy = write.try_clone().unwrap_or_else(|_| exit_now(1));
            let streams =
                Streams { stdin: Stream::Null, stdout: Stream::Pipe(write), stderr: Stream::Pipe(copy) };
            body(&streams, Origin { place, line: theirs, child: &child });
            exit_now(1)
        }
        Clone::Parent { pidfd, .. } => Running { process: pidfd, line, output },
    }
}

impl Running {
    /// Follows the reports to their end, and the program to its exit.
    fn finish(mut self) -> Outcome {
        let mut failure = None;
        loop {
            match Report::receive(self.line.as_fd()).unwrap() {
                Report::Ready { .. } => socket::send(self.line.as_fd(), b"S", &[]).unwrap(),
                Report::Line { line, .. } => self.line = line,
                Report::Born { number, .. } => {
                    let between = std::mem::replace(&mut self.process, open_pidfd(number).unwrap());
                    await_end(between.as_fd()).unwrap();
                    assert_eq!(wait(between.as_fd(), Reap::Remove).unwrap(), Some(Ended::Code(0)));
                }
                Report::Failed { class: (kind, _), message } => failure = Some((kind, message)),
                Report::Executed | Report::Closed => break,
            }
        }
        let mut output = String::new();
        File::from(self.output).read_to_string(&mut output).unwrap();
        await_end(self.process.as_fd()).unwrap();
        let ended = wait(self.process.as_fd(), Reap::Remove).unwrap().unwrap();
        Outcome { ended, output, failure }
    }
}

/// Runs a container until it exits.
fn ran(witness: &SingleThreaded, script: &str, change: impl FnOnce(&Path, &mut Plan)) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let mut plan = plan(directory.path(), script);
    change(directory.path(), &mut plan);
    let pod = pod();
    child(witness, Place::New, |streams, origin| {
        wharf_isolation::create(&encoded(&plan), namespaces(&pod), streams, origin)
    })
    .finish()
}

/// As it travels.
fn encoded(plan: &Plan) -> Vec<u8> {
    let file = wharf_wire::to_file(&wharf_wire::v1::Plan::from(plan)).unwrap();
    wharf_wire::read_file(&file).unwrap()
}

#[track_caller]
fn says(outcome: &Outcome, lines: &str) {
    let Outcome { ended, output, failure } = outcome;
    assert_eq!((*ended, output.trim_end(), failure), (Ended::Code(0), lines, &None));
}

#[track_caller]
fn fails(outcome: &Outcome, expected: ErrorKind, words: &str) {
    let (kind, message) = outcome.failure.as_ref().expect("it fails");
    assert!(*kind == expected && message.contains(words), "{kind:?}: {message}");
    assert_eq!((outcome.ended, outcome.output.as_str()), (Ended::Code(128), ""));
}

fn a_program_runs_in_its_root_with_what_it_was_given(witness: &SingleThreaded) {
    let script =
        "echo $$ $0 $KEY $HOME; pwd; echo /*; umask; readlink /proc/self/fd/0; ls -A /proc/self/fd | wc -l";
    let outcome = ran(witness, script, |_directory, _plan| {});
    let root = "/bin /dev /etc /lib /lib64 /new /proc /sbin /usr";
    // The three streams, and the directory that is being listed.
    says(&outcome, &format!("1 sh value /\n/new/directory\n{root}\n0022\n/dev/null\n4"));
}

fn devices_links_and_covers_are_the_containers(witness: &SingleThreaded) {
    let script = "readlink /dev/stdout; stat -c %t:%T /dev/null; cat /etc/secret; ls -A /hidden; \
                  echo x >/etc/kept || echo refused";
    let outcome = ran(witness, script, |directory, plan| {
        let layer = directory.join("layer");
        fs::write(layer.join("etc/secret"), "what is masked").unwrap();
        fs::write(layer.join("etc/kept"), "what is read-only").unwrap();
        fs::create_dir_all(layer.join("hidden/deep")).unwrap();
        plan.masked_paths = ["/etc/secret", "/hidden", "/no/such"].map(inner).to_vec();
        plan.readonly_paths = ["/etc/kept", "/no/such"].map(inner).to_vec();
    });
    assert!(outcome.output.ends_with("refused\n"), "{outcome:?}");
    assert!(outcome.output.starts_with("/proc/self/fd/1\n1:3\n"), "{outcome:?}");
    assert!(!outcome.output.contains("masked") && !outcome.output.contains("deep"), "{outcome:?}");
}

/// Of a procfs elsewhere nothing would be masked.
fn no_link_leads_a_new_file_system_elsewhere(witness: &SingleThreaded) {
    for leads_to in ["/", "/elsewhere", "dev/../elsewhere", "usr/.."] {
        let outcome = ran(witness, "exit 0", |directory, plan| {
            symlink(leads_to, directory.join("layer/proc")).unwrap();
            plan.masked_paths.push(inner("/proc/sys"));
        });
        fails(&outcome, ErrorKind::InvalidArgument, "/proc, from where a link leads on");
    }
}

fn no_link_leads_a_mount_over_the_root(witness: &SingleThreaded) {
    let bind =
        |_directory: &Path, plan: &mut Plan| plan.mounts.push(mount("/hole", Source::Tree(host("/usr"))));
    let mask = |_directory: &Path, plan: &mut Plan| plan.masked_paths.push(inner("/hole"));
    let read_only = |_directory: &Path, plan: &mut Plan| plan.readonly_paths.push(inner("/hole"));
    let changes: [fn(&Path, &mut Plan); 3] = [bind, mask, read_only];
    for change in changes {
        let outcome = ran(witness, "exit 0", |directory, plan| {
            symlink("etc/..", directory.join("layer/hole")).unwrap();
            change(directory, plan);
        });
        fails(&outcome, ErrorKind::InvalidArgument, "over the root of the container");
    }
}

/// An image of these layers, topmost first, each of which has a file of its own name.
fn image(directory: &Path, layers: &[&str], sub_path: &str) -> Source {
    let made = layers.iter().map(|name| {
        let layer = directory.join(name);
        fs::create_dir_all(layer.join("deep")).unwrap();
        fs::write(layer.join("deep").join(name), *name).unwrap();
        fs::write(layer.join("top"), *name).unwrap();
        host(layer)
    });
    Source::Image { layers: made.collect(), sub_path: inner(sub_path) }
}

fn an_image_is_a_volume_that_cannot_be_written(witness: &SingleThreaded) {
    let script = "cat /image/top; echo /image/*/*; cat /part/*; cat /file; touch /image/x 2>/dev/null || \
                  echo refused; cut -d' ' -f5 /proc/self/mountinfo | sort | tr '\\n' ' '";
    for (layers, merged) in [(&["one"][..], "one"), (&["one", "two"], "onetwo")] {
        let outcome = ran(witness, script, |directory, plan| {
            plan.mounts[2].source = Source::Single(host("/usr"));
            for (target, sub_path) in [("/image", "/"), ("/part", "/deep"), ("/file", "/top")] {
                let volume = mount(target, image(directory, layers, sub_path));
                plan.mounts.push(MountPlan { attributes: Attributes::READ_ONLY, ..volume });
            }
        });
        let files: Vec<_> = layers.iter().map(|name| format!("/image/deep/{name}")).collect();
        let mounted = "/ /dev /file /image /part /proc /usr";
        says(&outcome, &format!("one{}\n{merged}onerefused\n{mounted}", files.join(" ")));
    }
}

fn no_link_of_an_image_leads_out_of_it(witness: &SingleThreaded) {
    let cases = [
        ("/absolute", "\"absolute\" of the image cannot be used"),
        ("/upward/etc", "\"upward/etc\" of the image cannot be used"),
        ("/magic", "\"magic\" of the image cannot be used"),
        ("/missing", "\"missing\" of the image cannot be used"),
        ("/fifo", "neither a file nor a directory"),
    ];
    for layers in [&["one"][..], &["one", "two"]] {
        for (sub_path, words) in cases {
            let outcome = ran(witness, "exit 0", |directory, plan| {
                let volume = image(directory, layers, sub_path);
                let layer = directory.join("one");
                symlink("/etc/passwd", layer.join("absolute")).unwrap();
                symlink("../../../../..", layer.join("upward")).unwrap();
                symlink("/proc/self/root", layer.join("magic")).unwrap();
                nix::unistd::mkfifo(&layer.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
                plan.mounts.push(mount("/volume", volume));
            });
            fails(&outcome, ErrorKind::InvalidArgument, words);
            let (_kind, message) = outcome.failure.unwrap();
            assert!(message.starts_with("image volume /volume: "), "{message}");
        }
        // The image's own root is the root of its links.
        let outcome = ran(witness, "cat /volume/*", |directory, plan| {
            let volume = image(directory, layers, "/inside");
            symlink("/../deep", directory.join("one/inside")).unwrap();
            plan.mounts.push(mount("/volume", volume));
        });
        says(&outcome, &layers.concat());
    }
}

fn a_read_only_root_cannot_be_written(witness: &SingleThreaded) {
    let script = "touch /etc/x 2>/dev/null || echo refused; touch /volume/x && echo written";
    let outcome = ran(witness, script, |directory, plan| {
        fs::create_dir(directory.join("volume")).unwrap();
        plan.rootfs.read_only = true;
        plan.mounts.push(mount("/volume", Source::Volume(host(directory.join("volume")))));
    });
    says(&outcome, "refused\nwritten");
}

fn of_the_pods_files_only_those_of_the_plan_are_seen(witness: &SingleThreaded) {
    let script = "cat /etc/hosts; echo; cut -d' ' -f5 /proc/self/mountinfo | sort | tr '\\n' ' '";
    let outcome = ran(witness, script, |_directory, plan| {
        plan.mounts[2].source = Source::Single(host("/usr"));
        plan.mounts.push(mount("/etc/hosts", Source::OfPod(host("/where/people/look/hosts"))));
    });
    says(&outcome, "of the pod\n/ /dev /etc/hosts /proc /usr");
    let outcome = ran(witness, "true", |_directory, plan| {
        plan.mounts.push(mount("/etc/x", Source::OfPod(host("/where/people/look/x"))));
    });
    fails(&outcome, ErrorKind::InvalidArgument, "host path /where/people/look/x cannot be used");
}

fn rights_are_those_of_the_plan(witness: &SingleThreaded) {
    let script = "id -u; id -G; ulimit -n; grep -E '^(Cap(Bnd|Eff|Amb)|NoNewPrivs)' /proc/self/status | cut -f2; echo $HOME";
    let outcome = ran(witness, script, |_directory, plan| {
        plan.process.user =
            User { user: "me".into(), additional_groups: vec![OwnerId::new(7).unwrap()], ..User::default() };
        plan.process.capabilities =
            Capabilities { bounding: 3, effective: 3, permitted: 3, inheritable: 1, ambient: 1 };
        plan.process.no_new_privileges = true;
        plan.process.limits = vec![Limit { resource: 7, soft: 100, hard: 200 }];
    });
    let set = |bits: u64| format!("{bits:016x}");
    says(&outcome, &format!("1000\n1001 7\n100\n{}\n{}\n{}\n1\n/users/me", set(1), set(3), set(1)));
}

fn a_program_runs_beside_others_as_the_plan_says(witness: &SingleThreaded) {
    let script = "umask; uname -m; cut -d ' ' -f 19,41 /proc/self/stat; ionice";
    let outcome = ran(witness, script, |_directory, plan| {
        plan.process.traits = Traits {
            umask: 0o027,
            scheduling: Some(Scheduling { policy: 3, nice: 5, priority: 0 }),
            io_priority: Some((2, 6)),
            personality: Some(8),
        };
    });
    // Of a 64-bit machine a program that asked for 32 bits sees the other name.
    let machine = if cfg!(target_arch = "x86_64") { "i686" } else { "armv8l" };
    says(&outcome, &format!("0027\n{machine}\n5 3\nbest-effort: prio 6"));
}

fn a_shared_root_is_shared_and_no_other_is(witness: &SingleThreaded) {
    let script =
        "grep -c ' / / .* shared:' /proc/self/mountinfo; grep -c shared: /proc/self/mountinfo; exit 0";
    for (propagation, lines) in [(Propagation::Shared, "1\n1"), (Propagation::Private, "0\n0")] {
        let outcome = ran(witness, script, |_directory, plan| plan.rootfs.propagation = propagation);
        says(&outcome, lines);
    }
}

fn traits_that_the_kernel_refuses_are_named(witness: &SingleThreaded) {
    let cases: [(fn(&mut Traits), _); 2] = [
        (|traits| traits.io_priority = Some((7, 0)), "setting the priority of reads and writes"),
        (
            |traits| traits.scheduling = Some(Scheduling { policy: 99, nice: 0, priority: 0 }),
            "setting the scheduling policy",
        ),
    ];
    for (change, words) in cases {
        let outcome = ran(witness, "exit 0", |_directory, plan| change(&mut plan.process.traits));
        fails(&outcome, ErrorKind::Internal, words);
    }
}

fn a_plan_with_a_bad_part_makes_nothing(witness: &SingleThreaded) {
    let directory = tempfile::tempdir().unwrap();
    let bytes = encoded(&plan(directory.path(), "true"));
    let pod = pod();
    let cut = &bytes[..bytes.len() - 1];
    let refused = child(witness, Place::New, |streams, origin| {
        wharf_isolation::create(cut, namespaces(&pod), streams, origin)
    });
    fails(&refused.finish(), ErrorKind::Internal, "the container's plan is malformed");
    Outline::decode(cut).unwrap_err();
}

fn an_outline_is_of_its_plan(_witness: &SingleThreaded) {
    let directory = tempfile::tempdir().unwrap();
    let plan = plan(directory.path(), "true");
    let outline = Outline::decode(&encoded(&plan)).unwrap();
    assert_eq!(Plan::decode(&encoded(&plan)).unwrap(), plan);
    let Plan { container, namespaces, cgroup, process, stdio, runtime, mount_label, .. } = plan;
    assert_eq!(outline, Outline { container, namespaces, cgroup, process, stdio, runtime, mount_label });
}

fn a_missing_source_is_named(witness: &SingleThreaded) {
    let outcome = ran(witness, "true", |_directory, plan| {
        plan.mounts.push(mount("/there", Source::Tree(host("/no/such/source"))));
    });
    fails(&outcome, ErrorKind::InvalidArgument, "host path /no/such/source cannot be used");
}

fn an_image_is_at_fault_for_what_is_in_the_way(witness: &SingleThreaded) {
    let hosts = |plan: &mut Plan| plan.mounts.push(mount("/etc/hosts", Source::OfPod(host("/memory/hosts"))));
    let volume = |directory: &Path, plan: &mut Plan| {
        fs::create_dir(directory.join("volume")).unwrap();
        plan.mounts.push(mount("/data", Source::Volume(host(directory.join("volume")))));
    };
    let outcome = ran(witness, "true", |directory, plan| {
        fs::create_dir(directory.join("layer/etc/hosts")).unwrap();
        hosts(plan);
    });
    fails(&outcome, ErrorKind::InvalidArgument, "mounting /memory/hosts at /etc/hosts failed");
    let outcome = ran(witness, "true", |directory, plan| {
        fs::write(directory.join("layer/data"), "").unwrap();
        volume(directory, plan);
    });
    fails(&outcome, ErrorKind::InvalidArgument, "at /data failed");
    let outcome = ran(witness, "true", |directory, plan| {
        symlink("/proc/self/fd", directory.join("layer/data")).unwrap();
        volume(directory, plan);
    });
    assert_eq!(outcome.failure, None, "it is the container's own procfs");
    let outcome = ran(witness, "true", |directory, _plan| {
        fs::File::create(directory.join("layer/etc/passwd")).unwrap().set_len(11 << 20).unwrap();
    });
    fails(&outcome, ErrorKind::InvalidArgument, "file /etc/passwd in the container cannot be used");
}

fn an_unknown_user_is_named(witness: &SingleThreaded) {
    let outcome = ran(witness, "true", |_directory, plan| plan.process.user.user = "nobody-here".into());
    fails(&outcome, ErrorKind::InvalidArgument, "\"nobody-here\" is not in the image");
}

fn a_working_directory_that_is_a_file_is_named(witness: &SingleThreaded) {
    let outcome = ran(witness, "true", |_directory, plan| plan.process.cwd = inner("/etc/passwd"));
    fails(&outcome, ErrorKind::InvalidArgument, "working directory /etc/passwd");
}

fn a_working_directory_that_is_a_descriptor_of_the_hosts_is_named(witness: &SingleThreaded) {
    let host = File::open("/etc").unwrap();
    let cwd = format!("/proc/self/fd/{}", host.as_raw_fd());
    let outcome = ran(witness, "true", |_directory, plan| plan.process.cwd = inner(&cwd));
    fails(&outcome, ErrorKind::InvalidArgument, &format!("working directory {cwd}"));
    fails(&outcome, ErrorKind::InvalidArgument, "Too many symbolic links");
}

fn a_missing_program_is_named_and_nothing_runs(witness: &SingleThreaded) {
    let outcome = ran(witness, "", |_directory, plan| plan.process.args = vec![b"no-such".to_vec()]);
    fails(&outcome, ErrorKind::FailedPrecondition, "exec of \"no-such\" failed: no such file");
    let outcome = ran(witness, "", |directory, plan| {
        file(directory, "script", "#!/no/interpreter", 0o755);
        plan.process.cwd = inner("/etc");
        plan.process.args = vec![b"../script".to_vec()];
    });
    fails(
        &outcome,
        ErrorKind::FailedPrecondition,
        "\"/no/interpreter\", is not in the container: no such file",
    );
}

/// Puts a file into the image.
fn file(directory: &Path, name: &str, content: &str, mode: u32) {
    let path = directory.join("layer").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

fn of_what_the_user_may_not_read_nothing_is_told(witness: &SingleThreaded) {
    let failed = |program: &str, private: &str, change: &dyn Fn(&Path, &mut Plan)| {
        let outcome = ran(witness, "", |directory, plan| {
            file(directory, "secret", "#!/CONTENT x", 0o700);
            file(directory, "probe", "#!/private/x", 0o755);
            file(directory, private, "#!/CONTENT x", 0o755);
            fs::set_permissions(directory.join("layer/private"), fs::Permissions::from_mode(0o700)).unwrap();
            plan.process.args = vec![program.as_bytes().to_vec()];
            change(directory, plan);
        });
        fails(&outcome, ErrorKind::FailedPrecondition, "failed: permission denied");
        let (_kind, message) = outcome.failure.unwrap();
        assert!(!message.contains("CONTENT") && !message.contains("/private"), "{message}");
        message
    };
    let as_user = |_: &Path, plan: &mut Plan| plan.process.user.user = "me".into();
    failed("/secret", "private/y", &as_user);
    assert_eq!(failed("/probe", "private/x", &as_user), failed("/probe", "private/y", &as_user));
    // Root without the right to read everybody's files.
    failed("/secret", "private/y", &|directory, plan| {
        std::os::unix::fs::chown(directory.join("layer/secret"), Some(1000), Some(1000)).unwrap();
        plan.process.capabilities = Capabilities::default();
    });
}

fn a_program_is_named_under_any_limit(witness: &SingleThreaded) {
    const DATA: u32 = 2;
    const OPEN_FILES: u32 = 7;
    const ADDRESS_SPACE: u32 = 9;
    for resource in [DATA, OPEN_FILES, ADDRESS_SPACE] {
        let outcome = ran(witness, "", |directory, plan| {
            file(directory, "script", "#!/no/interpreter", 0o755);
            plan.process.args = vec![b"/script".to_vec()];
            plan.process.limits = vec![Limit { resource, soft: 1, hard: 1 }];
        });
        fails(&outcome, ErrorKind::FailedPrecondition, "no such file or directory in the container");
    }
}

fn another_process_joins_and_is_born_there(witness: &SingleThreaded) {
    let directory = tempfile::tempdir().unwrap();
    let plan = plan(directory.path(), "echo ready; exec sleep 1000");
    let pod = pod();
    let first = child(witness, Place::New, |streams, origin| {
        wharf_isolation::create(&encoded(&plan), namespaces(&pod), streams, origin)
    });
    assert!(matches!(Report::receive(first.line.as_fd()), Ok(Report::Ready { .. })));
    socket::send(first.line.as_fd(), b"S", &[]).unwrap();
    assert!(matches!(Report::receive(first.line.as_fd()), Ok(Report::Closed)));
    let mut join = JoinPlan {
        process: plan.process.clone(),
        identity: Identity::default(),
        ids: None,
        entries: Vec::new(),
        terminal: false,
        size: None,
    };
    let mut run = |script: &str, cwd: &str| {
        join.process.args[2] = script.as_bytes().to_vec();
        join.process.cwd = inner(cwd);
        let place = Place::Of(first.process.as_fd(), Others::Bystanders);
        child(witness, place, |streams, origin| {
            wharf_isolation::join(&join, first.process.as_fd(), streams, origin)
        })
        .finish()
    };
    let outcome = run(
        "test $$ -gt 1 && tr '\\0' ' ' </proc/1/cmdline | grep -o 'sleep 1000'; pwd; ls -A /proc/self/fd | wc -l",
        "/etc",
    );
    says(&outcome, "sleep 1000\n/etc\n4");
    let outcome = run("true", "/proc/1/root");
    fails(&outcome, ErrorKind::InvalidArgument, "working directory /proc/1/root");
    fails(&outcome, ErrorKind::InvalidArgument, "Too many symbolic links");
    // Among others it is in their procfs by the time at which it executes the program, and no earlier.
    fails(&run("true", "/proc/self/fd/0"), ErrorKind::InvalidArgument, "working directory /proc/self/fd/0");
    kill(first.process.as_fd()).unwrap();
    assert_eq!(first.finish_killed(), Ended::Signal(SIGKILL));
    let flags = fcntl(std::io::stdin(), FcntlArg::F_GETFD).unwrap();
    assert!(flags >= 0 && std::io::stdin().as_raw_fd() == 0, "this process is as it was");
}

impl Running {
    fn finish_killed(self) -> Ended {
        await_end(self.process.as_fd()).unwrap();
        wait(self.process.as_fd(), Reap::Remove).unwrap().unwrap()
    }
}
