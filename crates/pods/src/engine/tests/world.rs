//! A node of a test's own.

use std::io::Cursor;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use wharf_cgroup::{Cgroups, Driver, Placement};
use wharf_cri_api::v1::{
    ContainerConfig, ContainerMetadata, ImageSpec, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
};
use wharf_host::{AdditionsConfig, HandlerConfig, Handlers, directories};
use wharf_images::{Form, LayerSource, NewImage, Sender, Store, manifest::digest_of};
use wharf_network::{Builtin, BuiltinConfig, Mode, Network};
use wharf_planner::{Defaults, Switch};
use wharf_records::Phase;
use wharf_snapshots::Snapshots;
use wharf_state::Layout;
use wharf_supervision::{Contact, Process};
use wharf_sys::mount::{self, Attributes, Depth, Propagation};
use wharf_types::{ContainerId, PodId, Reference};

use super::supervisor::Supervisor;
use crate::container::Container;
use crate::engine::{Engine, Options, Parts};
use crate::error::Error;
use crate::pod::Pod;

const IMAGE: &str = "registry.test/app:v1";
/// Of waits for another thread, which take no time unless the test fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// An engine on directories and cgroups of its own.
pub(super) struct World {
    pub(super) engine: Arc<Engine>,
    directory: tempfile::TempDir,
    /// Where something is mounted in it.
    mounted: Mutex<Vec<PathBuf>>,
}

/// Runs a test in a network of its own, where the engine removes what belongs to no pod, and with mounts of its own.
pub(super) fn alone(test: impl AsyncFnOnce(&World) + Send) {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        mount::propagate(open("/").as_fd(), Propagation::Private, Depth::Recursive).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(&World::new()).await });
    };
    let ended = std::thread::scope(|scope| scope.spawn(run).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

impl World {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("run"), directory.path().join("lib"));
        std::fs::create_dir(layout.state()).unwrap();
        let images = Store::open(layout.root()).unwrap();
        add_image(&images);
        let parts = Parts {
            images: Arc::new(images),
            snapshots: Arc::new(Snapshots::open(&layout.snapshots()).unwrap()),
            network: Arc::new(Network::open(network(&layout)).unwrap()),
            cgroups: Cgroups::detect().unwrap(),
            // Whoever starts it has a supervisor that exits at once.
            supervisor: PathBuf::from("/bin/true"),
            plugins: Arc::new(wharf_nri::Plugins::new(None)),
            layout,
        };
        let cgroup_parent = format!("/wharf-pods-test-{}-{number}", std::process::id());
        let config =
            HandlerConfig { program: None, options: vec![], annotations: vec![], privileged_devices: None };
        let handlers = Handlers::ask([("known".to_owned(), config)].into());
        let defaults = Defaults::default();
        let additions = AdditionsConfig {
            cdi: Switch::On,
            cdi_directories: vec![directory.path().join("cdi")],
            hook_directories: vec![directory.path().join("hooks")],
        };
        let placement = Placement::new(Driver::Cgroupfs, &cgroup_parent).unwrap();
        let options = Options { placement, handlers, defaults, additions };
        Self { engine: Engine::new(options, parts).unwrap(), directory, mounted: Mutex::default() }
    }

    /// The engine of the next daemon, on the same machine.
    pub(super) fn next_engine(&self) -> Arc<Engine> {
        let Parts { layout, images, snapshots, network, cgroups, supervisor, plugins } = &self.engine.parts;
        let parts = Parts {
            layout: layout.clone(),
            images: Arc::clone(images),
            snapshots: Arc::clone(snapshots),
            network: Arc::clone(network),
            cgroups: cgroups.clone(),
            supervisor: supervisor.clone(),
            plugins: Arc::clone(plugins),
        };
        Engine::new(self.engine.options.clone(), parts).unwrap()
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.engine.parts.layout
    }

    /// Makes a directory one that has room for so many files.
    pub(super) fn limit_files(&self, directory: &Path, files: usize) {
        let inodes = (files + 1).to_string();
        let small = mount::new_filesystem("tmpfs", &[("nr_inodes", &inodes)], Attributes::NONE).unwrap();
        mount::attach(small.as_fd(), open(directory).as_fd()).unwrap();
        self.mounted.lock().unwrap().push(directory.to_owned());
    }

    /// Ends that for the last of them.
    pub(super) fn unlimit_files(&self, directory: &Path) {
        self.mounted.lock().unwrap().pop();
        umount2(directory, MntFlags::MNT_DETACH).unwrap();
    }

    /// A path that belongs to nothing of the engine.
    pub(super) fn aside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Has each container that is created from now on execute a hook at a point of its life.
    pub(super) fn hook(&self, point: &str, script: &str) {
        let hook = serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        let file = serde_json::json!({
            "version": "1.0.0", "hook": hook, "when": {"always": true}, "stages": [point]
        });
        std::fs::create_dir_all(self.aside("hooks")).unwrap();
        std::fs::write(self.aside("hooks").join(format!("{point}.json")), file.to_string()).unwrap();
    }

    /// The same for a hook that tells by the first file that it has begun, and goes on once the second is removed.
    pub(super) fn hold(&self, point: &str) -> [PathBuf; 2] {
        let [begun, held] = ["begun", "held"].map(|name| self.aside(name));
        std::fs::write(&held, "").unwrap();
        let wait = format!("touch {}; while [ -e {} ]; do sleep 0.01; done", begun.display(), held.display());
        self.hook(point, &wait);
        [begun, held]
    }

    /// A pod that is ready, with its supervisor.
    pub(super) async fn pod(&self) -> (Arc<Pod>, Supervisor) {
        let (supervisor, socket) = Supervisor::start();
        let id = PodId::from_random(wharf_sys::random::bytes().unwrap());
        let pod = Arc::new(Pod::new(id, pod_config("web"), String::new(), self.engine.table.creation_time()));
        directories::make(&self.layout().pod(pod.id())).unwrap();
        self.engine.record_pod(&pod, Phase::Made).unwrap();
        pod.write_state().ready = true;
        self.watch(&pod, socket).await;
        self.engine.table.insert(Arc::clone(&pod));
        (pod, supervisor)
    }

    /// Has the engine watch a supervisor.
    pub(super) async fn watch(&self, pod: &Arc<Pod>, socket: OwnedFd) {
        pod.contact().set(Contact::Connecting);
        *pod.supervisor() = Some(Process::adopt(socket.as_fd()).unwrap());
        self.engine.watch_over(pod, Some(socket));
        assert!(matches!(pod.contact().settled().await, Contact::Up(_)));
        // It is this process, which must not be killed at the end of the pod.
        *pod.supervisor() = None;
    }

    pub(super) async fn try_create(&self, pod: &Pod, config: ContainerConfig) -> Result<ContainerId, Error> {
        self.engine.create_container(pod.id().as_str(), config, &pod.config()).await
    }

    /// A container that waits for its start.
    pub(super) async fn create(&self, pod: &Pod) -> Arc<Container> {
        let id = self.try_create(pod, container_config("app")).await.unwrap();
        pod.container(id.as_str()).unwrap()
    }

    /// A container that runs.
    pub(super) async fn start(&self, pod: &Pod) -> Arc<Container> {
        let container = self.create(pod).await;
        self.engine.start_container(container.id().as_str()).await.unwrap();
        container
    }

    /// Checks that nothing of any container is left, on disk or in the kernel.
    pub(super) fn assert_no_container(&self, pod: &Pod, case: &str) {
        assert!(self.engine.containers().is_empty(), "{case}");
        let records = self.layout().container_records(pod.id());
        let records = std::fs::read_dir(records).into_iter().flatten().count();
        let exits = std::fs::read_dir(Layout::exits(&self.layout().pod(pod.id()))).unwrap().count();
        let snapshots = self.engine.parts.snapshots.list().unwrap();
        assert_eq!((records, exits, snapshots), (0, 0, Vec::new()), "{case}");
        let parent = self.engine.pod_cgroup(pod).unwrap();
        let directory = self.engine.parts.cgroups.at(&parent).kill_directory();
        let below = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let cgroups: Vec<_> = below.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()).collect();
        assert!(cgroups.is_empty(), "{case}: {cgroups:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let mounted = self.mounted.get_mut().unwrap();
        mounted.iter().for_each(|place| umount2(place, MntFlags::MNT_DETACH).unwrap());
        if let Ok(cgroup) = self.engine.parts.cgroups.open(self.engine.options.placement.parent()) {
            cgroup.remove(PATIENCE).unwrap();
        }
    }
}

fn open(directory: impl AsRef<Path>) -> OwnedFd {
    wharf_sys::fs::open(directory.as_ref(), OFlag::O_PATH | OFlag::O_DIRECTORY).unwrap()
}

/// Waits until another task or thread has done something.
pub(super) async fn until(done: impl Fn() -> bool) {
    let waited = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.expect("it happens");
}

fn network(layout: &Layout) -> wharf_network::Config {
    wharf_network::Config {
        state_dir: layout.network(),
        lease_dir: layout.leases(),
        cni_conf_dir: layout.root().join("net.d"),
        cni_bin_dirs: Vec::new(),
        cni_add_deadline: PATIENCE,
        cni_delete_deadline: PATIENCE,
        builtin: Builtin::On,
        builtin_network: BuiltinConfig {
            mode: Mode::Routed,
            bridge: "wharf0".to_owned(),
            subnets: "10.88.0.0/24".parse().unwrap(),
            cluster_subnets: Vec::new(),
            mtu: None,
        },
        kubelet_files: Vec::new(),
    }
}

/// An image of one layer without files.
fn add_image(store: &Store) {
    let layer = [0; 1024];
    let digest = digest_of(&layer);
    let source = LayerSource {
        diff_id: digest.clone(),
        form: Form::Archive,
        blob_digest: digest.clone(),
        blob_size_bytes: layer.len() as u64,
        sender: Sender::default(),
    };
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","config":{{"Cmd":["/app"],"StopSignal":"SIGINT"}},
        "rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json",
        "digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar",
        "digest":"{digest}","size":{}}}]}}"#,
        digest_of(config.as_bytes()),
        config.len(),
        layer.len()
    );
    let manifest_digest = digest_of(manifest.as_bytes());
    let layer = store.unpack(&source, &mut Cursor::new(layer)).unwrap();
    let image = NewImage {
        names: &[IMAGE.parse::<Reference>().unwrap()],
        resolved: Some(&manifest_digest),
        manifest: manifest.as_bytes(),
        manifest_digest: &manifest_digest,
        config: config.as_bytes(),
        layers: vec![layer.into()],
        pinned: false,
    };
    store.commit(image).unwrap();
}

/// A pod in the host's namespaces, so that none has to be made.
pub(super) fn pod_config(name: &str) -> PodSandboxConfig {
    let namespaces = NamespaceOption {
        network: NamespaceMode::Node.into(),
        ipc: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ..NamespaceOption::default()
    };
    let security_context =
        LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
    let linux = LinuxPodSandboxConfig { security_context: Some(security_context), ..Default::default() };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: name.to_owned(), ..Default::default() }),
        linux: Some(linux),
        ..Default::default()
    }
}

pub(super) fn container_config(name: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), ..Default::default() }),
        image: Some(ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
        ..Default::default()
    }
}
