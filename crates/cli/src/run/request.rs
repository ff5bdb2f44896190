//! The requests of `wharf run`, built from its arguments. The only I/O here is reading environment files and random
//! bytes.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use wharf_cri_api::v1::{
    Capability, CgroupMountMode, CgroupNamespace, ContainerConfig, ContainerMetadata, ImageSpec, Int64Value,
    KeyValue, LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandbox,
    PodSandboxConfig, PodSandboxMetadata, SecurityProfile, UserNamespace, security_profile::ProfileType,
};
use wharf_types::{MASKED_PATHS, POD_LOGS, READONLY_PATHS, Reference};

use crate::args::{Cpus, Env, ImageMount, Name, Run, UserName, Users, Whose};
use crate::error::Error;
use crate::find::{self, Listing, container_name, is_over};

/// The annotation that names a pod's log directory, which is removed with the pod.
pub(crate) const LOGS_ANNOTATION: &str = "wharf.dev/log-directory";

/// The annotation that tells what a run has created from what another one has created under the same name: wharfd joins
/// calls for the same name, so the second one may get what the first one makes.
const RUN_ANNOTATION: &str = "wharf.dev/run";

/// Marks what is created with these random characters.
pub(crate) fn mark(annotations: &mut BTreeMap<String, String>, random: &str) {
    annotations.insert(RUN_ANNOTATION.to_owned(), random.to_owned());
}

/// Whether something with these annotations was created with these random characters.
pub(crate) fn is_of(annotations: &BTreeMap<String, String>, random: &str) -> bool {
    annotations.get(RUN_ANNOTATION).is_some_and(|run| run == random)
}

/// 32 random hexadecimal characters.
pub(crate) fn random() -> Result<String, Error> {
    const SOURCE: &str = "/dev/urandom";
    let mut bytes = [0; 16];
    let read = std::fs::File::open(SOURCE).and_then(|mut source| source.read_exact(&mut bytes));
    read.map_err(|cause| Error::File { path: SOURCE.into(), cause })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The requested name, if it is free; without one, a name derived from the image's.
pub(crate) fn pod_name(listing: &Listing, run: &Run, random: &str) -> Result<String, Error> {
    let Some(Name(name)) = &run.name else {
        return Ok(format!("{}-{}", image_word(&run.image), &random[..4]));
    };
    if listing.pods.iter().any(|pod| find::pod_name(pod) == name) {
        return Err(Error::NameTaken { name: name.clone() });
    }
    Ok(name.clone())
}

/// The name of a further container in a pod, and its attempt number. Without a requested name, it is the first free one
/// of `nginx`, `nginx-2`, `nginx-3` and so on.
pub(crate) fn name_in(listing: &Listing, pod: &PodSandbox, run: &Run) -> Result<ContainerMetadata, Error> {
    if let Some(Name(name)) = &run.name {
        let taken = || Error::NameTaken { name: format!("{}/{name}", find::pod_name(pod)) };
        let attempt = attempt_of(listing, pod, name).ok_or_else(taken)?;
        return Ok(ContainerMetadata { name: name.clone(), attempt });
    }
    let (word, mut number) = (image_word(&run.image), 1_u32);
    loop {
        let name = if number == 1 { word.clone() } else { format!("{word}-{number}") };
        if let Some(attempt) = attempt_of(listing, pod, &name) {
            return Ok(ContainerMetadata { name, attempt });
        }
        number += 1;
    }
}

/// The attempt number of a name that is free: a container that has ended may have a successor. One that waits for its
/// start has not ended.
fn attempt_of(listing: &Listing, pod: &PodSandbox, name: &str) -> Option<u32> {
    let mut earlier = listing.containers_of(pod).filter(|container| container_name(container) == name);
    earlier.try_fold(0, |attempt, container| {
        let next = container.metadata.as_ref().map_or(0, |metadata| metadata.attempt) + 1;
        is_over(container).then_some(attempt.max(next))
    })
}

/// The last word of an image's name, or as much of it as leaves room for more in a name: `nginx` for
/// `docker.io/library/nginx:1.22`.
fn image_word(image: &str) -> String {
    let repository = image.parse::<Reference>().map(|reference| reference.repository().to_owned());
    let repository = repository.unwrap_or_default();
    let word = repository.rsplit('/').next().unwrap_or_default().replace(['_', '.'], "-");
    let word: String = word.chars().take(Name::LIMIT_BYTES - 8).collect();
    if word.is_empty() { "container".to_owned() } else { word }
}

/// The pod of a run that does not join one.
pub(crate) fn pod(run: &Run, name: &str, random: &str) -> PodSandboxConfig {
    let log_directory = format!("{POD_LOGS}/{name}-{}", &random[..8]);
    let mut namespaces = namespaces(run);
    namespaces.userns_options = run.userns.map(|users| user_namespace(users, random));
    let security = LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces),
        privileged: run.privileged,
        seccomp: Some(seccomp(run)),
        ..LinuxSandboxSecurityContext::default()
    };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            // Not random: of pods with one name, wharfd makes one.
            uid: name.to_owned(),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: match (&run.hostname, run.host_network) {
            (_, true) => String::new(),
            (Some(hostname), false) => hostname.clone(),
            (None, false) => name.to_owned(),
        },
        port_mappings: run.publish.iter().flat_map(|publish| publish.0.clone()).collect(),
        annotations: [
            (LOGS_ANNOTATION.to_owned(), log_directory.clone()),
            (RUN_ANNOTATION.to_owned(), random.to_owned()),
        ]
        .into(),
        log_directory,
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(security),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    }
}

/// The name of the log of a container that joins a pod. No other container has it, not even a removed one of the same
/// name and attempt, whose log may still be there.
pub(crate) fn log_in(name: &str, random: &str) -> String {
    format!("{name}.{}.log", &random[..8])
}

/// The container, for any pod.
pub(crate) fn container(
    run: &Run,
    envs: Vec<KeyValue>,
    metadata: ContainerMetadata,
    (log_path, random): (String, &str),
) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(metadata),
        annotations: [(RUN_ANNOTATION.to_owned(), random.to_owned())].into(),
        image: Some(ImageSpec { image: run.image.clone(), ..ImageSpec::default() }),
        command: run.entrypoint.iter().cloned().collect(),
        args: run.command.clone(),
        working_dir: run.workdir.clone().unwrap_or_default(),
        envs,
        mounts: mounts(run),
        log_path,
        stdin: run.interactive,
        // Input ends when its sender is gone, unless a program waits for others to attach.
        stdin_once: run.interactive && !run.detach && !run.tty,
        tty: run.tty,
        linux: Some(LinuxContainerConfig {
            resources: Some(resources(run)),
            security_context: Some(security(run)),
        }),
        ..ContainerConfig::default()
    }
}

fn mounts(run: &Run) -> Vec<Mount> {
    let volumes = run.volume.iter().map(|volume| volume.0.clone());
    volumes.chain(run.mount.iter().map(ImageMount::mount)).collect()
}

fn namespaces(run: &Run) -> NamespaceOption {
    let network = if run.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..NamespaceOption::default()
    }
}

/// The pod's namespaces, and the cgroups that the container sees.
fn own_namespaces(run: &Run) -> NamespaceOption {
    let mode = run.cgroupns.map(|whose| match whose {
        Whose::Own => NamespaceMode::Container,
        Whose::Host => NamespaceMode::Node,
    });
    let cgroupns_options = mode.map(|mode| CgroupNamespace { mode: mode.into() });
    NamespaceOption { cgroupns_options, ..namespaces(run) }
}

fn user_namespace(users: Users, random: &str) -> UserNamespace {
    let mapping = users.mapping(u16::from_str_radix(&random[..4], 16).unwrap_or_default());
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: vec![mapping], gids: vec![mapping] }
}

fn seccomp(run: &Run) -> SecurityProfile {
    let profile = if run.privileged { ProfileType::Unconfined } else { ProfileType::RuntimeDefault };
    SecurityProfile { profile_type: profile.into(), ..SecurityProfile::default() }
}

fn resources(run: &Run) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: run.memory.map_or(0, |memory| memory.0),
        cpu_quota: run.cpus.map_or(0, |cpus| cpus.quota_us),
        cpu_period: run.cpus.map_or(0, |_| Cpus::PERIOD_US),
        ..LinuxContainerResources::default()
    }
}

fn security(run: &Run) -> LinuxContainerSecurityContext {
    let user = run.user.as_ref();
    let id = |value| Int64Value { value };
    let (run_as_user, run_as_username) = match user.map(|user| &user.user) {
        Some(UserName::Id(uid)) => (Some(id(*uid)), String::new()),
        Some(UserName::Name(name)) => (None, name.clone()),
        None => (None, String::new()),
    };
    let own = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: run.cap_add.clone(),
            drop_capabilities: run.cap_drop.clone(),
            ..Capability::default()
        }),
        privileged: run.privileged,
        namespace_options: Some(own_namespaces(run)),
        cgroup_mount_mode: if run.cgroup_write {
            CgroupMountMode::ReadWrite.into()
        } else {
            CgroupMountMode::Unspecified.into()
        },
        run_as_user,
        run_as_group: user.and_then(|user| user.group).map(id),
        run_as_username,
        readonly_rootfs: run.read_only,
        masked_paths: own(&MASKED_PATHS),
        readonly_paths: own(&READONLY_PATHS),
        seccomp: Some(seccomp(run)),
        ..LinuxContainerSecurityContext::default()
    }
}

/// The variables from the files, and then those from the command line, which come later and so override them.
pub(crate) fn environment(run: &Run) -> Result<Vec<KeyValue>, Error> {
    let mut all = Vec::new();
    for path in &run.env_file {
        let text = read_env_file(path).map_err(|cause| Error::File { path: path.clone(), cause })?;
        all.extend(variables(path, &text)?);
    }
    all.extend(run.env.iter().map(|env| env.0.clone()));
    Ok(all)
}

/// Reads a file of variables, which may be a pipe: a shell makes one for `--env-file <(command)`.
fn read_env_file(path: &Path) -> io::Result<String> {
    /// A program with more variables could not be executed.
    const LIMIT_BYTES: u64 = 1 << 20;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(LIMIT_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Parses one variable per line; empty lines and lines that begin with `#` are skipped.
fn variables(path: &Path, text: &str) -> Result<Vec<KeyValue>, Error> {
    let lines =
        text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|(at, line)| {
            let env: Result<Env, String> = line.parse();
            env.map(|env| env.0).map_err(|problem| Error::Line {
                path: path.to_owned(),
                line: at + 1,
                problem,
            })
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::args::{Arguments, Command};
    use clap::FromArgMatches;
    use wharf_cri_api::v1::{Container, ContainerState, IdMapping};

    pub(crate) fn parsed(arguments: &str) -> Run {
        let words = ["wharf", "run"].into_iter().chain(arguments.split_whitespace());
        let matches = crate::args::command().try_get_matches_from(words).unwrap();
        match Arguments::from_arg_matches(&matches).unwrap().command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_arguments_become_a_pod() {
        let run = parsed("-p 8080:80 --hostname h nginx");
        let pod = pod(&run, "web", &"0123456789abcdef".repeat(2));
        assert_eq!((pod.hostname.as_str(), pod.port_mappings[0].host_port), ("h", 8080));
        assert_eq!(pod.log_directory, "/var/log/wharf/web-01234567");
        let security = pod.linux.unwrap().security_context.unwrap();
        assert_eq!(security.namespace_options.unwrap().network(), NamespaceMode::Pod);
        assert_eq!(security.seccomp.unwrap().profile_type(), ProfileType::RuntimeDefault);
    }

    #[test]
    fn the_arguments_become_a_container() {
        let run =
            parsed("--memory 1m --cpus 0.5 --user 7:8 --cap-drop ALL --read-only --entrypoint sh x -c -x");
        let metadata = ContainerMetadata { name: "web".into(), attempt: 2 };
        let random = "0123456789abcdef".repeat(2);
        let config = container(&run, Vec::new(), metadata, (log_in("web", &random), &random));
        assert!(is_of(&config.annotations, &random) && !is_of(&config.annotations, "0123"));
        assert_eq!(
            (config.command, config.args),
            (vec!["sh".to_owned()], vec!["-c".to_owned(), "-x".into()])
        );
        assert_eq!(config.log_path, "web.01234567.log");
        let linux = config.linux.unwrap();
        let (resources, security) = (linux.resources.unwrap(), linux.security_context.unwrap());
        assert_eq!((resources.memory_limit_in_bytes, resources.cpu_quota), (1 << 20, 50_000));
        assert_eq!(security.run_as_user.unwrap().value, 7);
        assert_eq!(security.capabilities.unwrap().drop_capabilities, ["ALL"]);
        assert!(security.readonly_rootfs && security.masked_paths.contains(&"/proc/kcore".to_owned()));
    }

    #[test]
    fn the_privileged_and_the_hosts_network_are_as_asked() {
        let run = parsed("--privileged --host-network x");
        let pod = pod(&run, "p", &"0".repeat(32));
        assert_eq!(pod.hostname, "");
        let security = security(&run);
        assert_eq!(security.seccomp.unwrap().profile_type(), ProfileType::Unconfined);
        assert_eq!(security.namespace_options.unwrap().network(), NamespaceMode::Node);
    }

    #[test]
    fn a_user_namespace_is_the_pods() {
        let mapping = |arguments: &str| {
            let pod = pod(&parsed(arguments), "p", &"ffff".repeat(8));
            let options = pod.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
            options.userns_options.map(|users| (users.mode(), users.uids, users.gids))
        };
        let one = |host_id, length| {
            let all = vec![IdMapping { host_id, container_id: 0, length }];
            Some((NamespaceMode::Pod, all.clone(), all))
        };
        assert_eq!(mapping("x"), None);
        assert_eq!(mapping("--userns x"), one(0x7000_0000 + (15 << 16), 65_536));
        assert_eq!(mapping("--userns=100000 x"), one(100_000, 65_536));
        assert_eq!(mapping("--userns=1000:100000 x"), one(1000, 100_000));
        let unnamed = ContainerMetadata::default();
        let container = container(&parsed("--userns x"), vec![], unnamed, (String::new(), ""));
        let options = container.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
        assert_eq!(options.userns_options, None, "its pod's");
    }

    #[test]
    fn the_view_of_cgroups_is_the_containers() {
        let asked = |arguments: &str| {
            let run = parsed(arguments);
            let pods = pod(&run, "p", &"0".repeat(32)).linux.unwrap().security_context.unwrap();
            assert_eq!(pods.namespace_options.unwrap().cgroupns_options, None);
            let security = security(&run);
            let options = security.namespace_options.as_ref().unwrap().cgroupns_options;
            (options.map(|options| options.mode()), security.cgroup_mount_mode())
        };
        assert_eq!(asked("x"), (None, CgroupMountMode::Unspecified));
        assert_eq!(asked("--cgroupns own x").0, Some(NamespaceMode::Container));
        assert_eq!(asked("--cgroupns host x").0, Some(NamespaceMode::Node));
        assert_eq!(asked("--cgroup-write x").1, CgroupMountMode::ReadWrite);
    }

    #[test]
    fn a_file_of_variables_has_an_end() {
        let error = read_env_file(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error.to_string(), "it is longer than 1 MiB");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "A=1\n").unwrap();
        assert_eq!(read_env_file(&file).unwrap(), "A=1\n");
        std::fs::write(&file, b"A=\xff").unwrap();
        assert_eq!(read_env_file(&file).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn contradictions_are_refused() {
        for bad in [
            "--cgroupns pod x",
            "--userns=x x",
            "--userns=1:0 x",
            "--pod a --userns x",
            "--pod a -p 1:2 x",
            "--rm -d x",
            "--host-network -p 1:2 x",
            "--memory 1q x",
            "",
        ] {
            let words = ["wharf", "run"].into_iter().chain(bad.split_whitespace());
            assert!(crate::args::command().try_get_matches_from(words).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_made_up_or_free() {
        let random = "abcdef0123456789";
        let name = |arguments: &str| pod_name(&Listing::default(), &parsed(arguments), random);
        let of_long = name(&format!("registry.example/{}", "n".repeat(200))).unwrap();
        assert!(of_long.parse::<Name>().is_ok(), "{of_long}");
        assert_eq!(name("localhost:5000/a/my_app.x:1").unwrap(), "my-app-x-abcd");
        assert_eq!(name("--name web nginx").unwrap(), "web");
        let metadata = Some(PodSandboxMetadata { name: "web".into(), ..PodSandboxMetadata::default() });
        let taken =
            Listing { pods: vec![PodSandbox { metadata, ..PodSandbox::default() }], containers: vec![] };
        let refused = pod_name(&taken, &parsed("--name web nginx"), random);
        assert!(matches!(refused, Err(Error::NameTaken { .. })));
    }

    #[test]
    fn an_ended_container_may_have_a_successor() {
        let container = |attempt, state: ContainerState| Container {
            metadata: Some(ContainerMetadata { name: "x".into(), attempt }),
            state: state.into(),
            ..Container::default()
        };
        let mut listing =
            Listing { pods: vec![], containers: vec![container(3, ContainerState::ContainerExited)] };
        let pod = PodSandbox::default();
        let metadata = |name: &str, attempt| ContainerMetadata { name: name.into(), attempt };
        assert_eq!(name_in(&listing, &pod, &parsed("x")).unwrap(), metadata("x", 4));
        assert_eq!(name_in(&listing, &pod, &parsed("--name y x")).unwrap(), metadata("y", 0));
        listing.containers.push(container(4, ContainerState::ContainerRunning));
        assert!(matches!(name_in(&listing, &pod, &parsed("--name x x")), Err(Error::NameTaken { .. })));
        assert_eq!(name_in(&listing, &pod, &parsed("x")).unwrap(), metadata("x-2", 0));
        listing.containers[1].state = ContainerState::ContainerCreated.into();
        assert!(name_in(&listing, &pod, &parsed("--name x x")).is_err(), "it is about to run");
    }

    #[test]
    fn files_of_variables_are_read() {
        let path = Path::new("/e");
        let keys =
            |text| variables(path, text).map(|all| all.into_iter().map(|pair| pair.key).collect::<Vec<_>>());
        assert_eq!(keys("# no\n\nA=1\nB=2 # part of it\n").unwrap(), ["A", "B"]);
        assert_eq!(keys("A=1\n=2\n").unwrap_err().to_string(), "/e, line 2: the variable has no name");
    }
}
