//! How many instructions it takes to decide about a pod and a container: to read the requests, to plan, and to pass the
//! plan on to the container's first process. Unlike times they repeat, on other machines as well. valgrind counts them,
//! in a build for debugging, as cargo makes it for tests.
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "an integration test is nothing but tests"
)]

use std::collections::BTreeMap;
use std::process::Command;

use prost::Message;
use wharf_cgroup::{Driver, Placement};
use wharf_cri_api::v1::security_profile::ProfileType;
use wharf_cri_api::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, PodSandboxConfig, PodSandboxMetadata,
    RunPodSandboxRequest, SecurityProfile,
};
use wharf_isolation::{CgroupPlan, Plan};
use wharf_planner::{
    self as planner, CgroupPlaces, Defaults, Filters, HostFacts, HostNames, ImageConfig, Layers, Pins,
    Places, Request, SecurityModules, Switch,
};
use wharf_types::{ContainerId, HostPath, PodId, Reserve};
use wharf_wire::v1;

/// What each may take, in thousands. Lower a number when less is needed.
const TREE: [(&str, u64); 3] = [("a pod", 174), ("a container", 3963), ("its plan", 693)];

/// By how many percent a count may exceed its limit: hash tables are seeded anew in each process.
const MARGIN_PERCENT: u64 = 3;

/// Names the part that this program does, and how often, when it runs below valgrind.
const PART: &str = "WHARF_COUNTED_PART";
const TIMES: &str = "WHARF_COUNTED_TIMES";

#[test]
fn decisions_take_no_more_instructions_than_the_tree_says() {
    for (part, most) in TREE {
        // What the program takes to begin is in both.
        let each = (counted(part, 11) - counted(part, 1)) / 10;
        println!("{part}: {each} instructions");
        assert!(
            100 * each <= 1000 * most * (100 + MARGIN_PERCENT),
            "{part}: {each}, and the tree says {most}000"
        );
    }
}

/// What is counted: the program calls this test alone.
#[test]
fn parts() {
    let times = std::env::var(TIMES).map_or(1, |times| times.parse().unwrap());
    let part = std::env::var(PART);
    for (name, _) in TREE.iter().filter(|(name, _)| part.as_deref().is_ok_and(|part| part == *name)) {
        match *name {
            "a pod" => repeat(times, request_for_pod().as_slice(), decide_pod),
            "a container" => {
                let filters = Filters::default();
                repeat(times, request_for_container().as_slice(), |request| {
                    drop(decide_container(request, &filters))
                });
            }
            "its plan" => {
                let plan = decide_container(&request_for_container(), &Filters::default());
                repeat(times, &plan, pass_on);
            }
            other => unreachable!("{other}"),
        }
    }
}

fn repeat<T: ?Sized>(times: usize, of: &T, work: impl Fn(&T)) {
    (0..times).for_each(|_| work(std::hint::black_box(of)));
}

/// The instructions of this program if it does a part so often.
#[expect(clippy::disallowed_methods, reason = "this program is executed again, below valgrind")]
fn counted(part: &str, times: usize) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap());
    valgrind.args(["--exact", "parts", "--test-threads=1"]).env(PART, part).env(TIMES, times.to_string());
    let output = valgrind.output().expect("valgrind is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")).expect("a count").1;
    collected.trim().parse().unwrap()
}

fn decide_pod(request: &[u8]) {
    let request = RunPodSandboxRequest::decode(request).unwrap();
    let config = request.config.unwrap();
    let defaults = Defaults::default();
    let placement = Placement::new(Driver::Cgroupfs, "/wharf").unwrap();
    planner::check_pod(&config, &defaults, &placement).unwrap();
    let names = HostNames { hostname: "node".to_owned(), ..HostNames::default() };
    planner::plan_pod(&config, names, &defaults, planner::Selinux::Off).unwrap();
}

fn decide_container(request: &[u8], filters: &Filters) -> Plan {
    let request = CreateContainerRequest::decode(request).unwrap();
    let (container, pod) = (request.config.unwrap(), request.sandbox_config.unwrap());
    planner::check(&container, &planner::namespaces_of(&pod), modules()).unwrap();
    let (pod_id, id) = (PodId::from_random([1; 32]), ContainerId::from_random([2; 32]));
    let (image, defaults) = (image(), Defaults::default());
    let request = Request {
        pod_id: &pod_id,
        pod: &pod,
        id: &id,
        container: &container,
        image: &image,
        mounted: &[],
        profile: None,
        defaults: &defaults,
        unasked_apparmor: Switch::On,
        selinux: planner::Selinux::Off,
    };
    let description = planner::describe(&request, &facts(), &places()).unwrap();
    let plan = planner::plan(&description, filters).unwrap();
    planner::limits(&description.resources()).unwrap();
    planner::to_saved(description.spec, description.extra.seccomp).unwrap();
    plan
}

/// From the daemon to the first process.
fn pass_on(plan: &Plan) {
    Plan::decode(&v1::Plan::from(plan).encode_to_vec()).unwrap();
}

fn modules() -> planner::SecurityModules {
    planner::SecurityModules { apparmor: Switch::Off }
}

fn pod() -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web-0".to_owned(),
            uid: "c0ffee00-0000-4000-8000-000000000000".to_owned(),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: "web-0".to_owned(),
        labels: pairs("label", 6),
        annotations: pairs("annotation", 6),
        ..PodSandboxConfig::default()
    }
}

fn request_for_pod() -> Vec<u8> {
    RunPodSandboxRequest { config: Some(pod()), ..RunPodSandboxRequest::default() }.encode_to_vec()
}

/// About what a kubelet sends: variables for each service, a memory limit, the runtime's own profile.
fn request_for_container() -> Vec<u8> {
    let seccomp =
        SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..SecurityProfile::default() };
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "web".to_owned(), attempt: 0 }),
        image: Some(ImageSpec { image: "sha256:0".to_owned(), ..ImageSpec::default() }),
        envs: pairs("SERVICE", 30)
            .into_iter()
            .map(|(key, value)| KeyValue { key, value: value.into() })
            .collect(),
        labels: pairs("label", 6),
        annotations: pairs("annotation", 6),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                memory_limit_in_bytes: 64 << 20,
                cpu_shares: 100,
                ..LinuxContainerResources::default()
            }),
            security_context: Some(LinuxContainerSecurityContext {
                seccomp: Some(seccomp),
                ..LinuxContainerSecurityContext::default()
            }),
        }),
        ..ContainerConfig::default()
    };
    let request = CreateContainerRequest {
        config: Some(config),
        sandbox_config: Some(pod()),
        ..CreateContainerRequest::default()
    };
    request.encode_to_vec()
}

fn pairs(name: &str, count: usize) -> BTreeMap<String, String> {
    (0..count).map(|number| (format!("{name}_{number}"), format!("the value of {number}"))).collect()
}

fn image() -> ImageConfig {
    let mut image = ImageConfig::default();
    image.set_entrypoint(Some(vec!["/bin/server".to_owned()]));
    image
}

fn facts() -> HostFacts {
    HostFacts {
        hostname: "node".to_owned(),
        kernel: (6, 18),
        bounding: (1 << 41) - 1,
        devices: Vec::new(),
        host_devices: Vec::new(),
        mounts: Vec::new(),
        seccomp_profile: None,
        modules: SecurityModules { apparmor: Switch::Off },
    }
}

fn places() -> Places {
    let host = |path: &str| HostPath::new(path).unwrap();
    let cgroup = "/sys/fs/cgroup/wharf/pod/container";
    Places {
        layers: Layers {
            lowers: (0..5).map(|number| host(&format!("/layers/{number}/fs"))).collect(),
            upper: host("/snapshots/c/fs"),
            work: host("/snapshots/c/work"),
        },
        volumes: host("/snapshots/c/volumes"),
        reserve: Reserve::default(),
        pod_files: host("/pods/p/files"),
        namespaces: Pins {
            net: host("/n/net"),
            ipc: host("/n/ipc"),
            uts: host("/n/uts"),
            user: host("/n/user"),
        },
        cgroup: CgroupPlaces {
            path: "/wharf/pod/container".to_owned(),
            plan: CgroupPlan {
                directory: Some(host(cgroup)),
                entries: Vec::new(),
                kill_directory: host(cgroup),
                oom_file: Some(host(&format!("{cgroup}/memory.events"))),
            },
            v1: Vec::new(),
            unified: Some(host("/sys/fs/cgroup")),
            delegation: Switch::On,
        },
    }
}
