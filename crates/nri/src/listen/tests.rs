//! Plugins that register, are synchronised and are told, with a node that does nothing.

use std::sync::Mutex;

use super::*;
use crate::api::Event;
use crate::settings::Validation;
use crate::{Answer, Failed, Shown, Update};

const PATIENCE: Duration = Duration::from_secs(10);

/// A node with a number of containers.
#[derive(Debug, Default)]
struct SomeNode {
    containers: usize,
    updated: Mutex<Vec<String>>,
}

impl Node for SomeNode {
    fn existing(self: Arc<Self>) -> Answer<Existing> {
        let container = |number: usize| Container {
            id: number.to_string(),
            args: vec!["x".repeat(100_000)],
            ..Container::default()
        };
        let containers = (0..self.containers).map(container).collect();
        Box::pin(async { (vec![PodSandbox::default()], containers) })
    }

    fn update(self: Arc<Self>, container: String, _update: Box<Update>) -> Answer<Result<(), Failed>> {
        Box::pin(async move {
            let known = container.parse().is_ok_and(|number: usize| number < self.containers);
            self.updated.lock().unwrap().push(container);
            if known { Ok(()) } else { Err("unknown".into()) }
        })
    }

    fn evict(self: Arc<Self>, container: String) -> Answer<Result<(), Failed>> {
        self.updated.lock().unwrap().push(format!("evict {container}"));
        Box::pin(async { Ok(()) })
    }

    fn stopped(self: Arc<Self>, _container: ContainerId) -> Answer<()> {
        Box::pin(async {})
    }
}

fn settings(directory: &Path) -> Settings {
    Settings {
        socket: directory.join("nri.sock"),
        external: true,
        plugin_dir: directory.join("plugins"),
        plugin_config_dir: directory.join("conf.d"),
        registration_timeout: PATIENCE,
        request_timeout: PATIENCE,
        validation: Validation::default(),
        version: "1".to_owned(),
    }
}

struct Rig {
    _directory: tempfile::TempDir,
    plugins: Arc<Plugins>,
    node: Arc<SomeNode>,
    socket: PathBuf,
}

async fn rig(containers: usize) -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let plugins = Arc::new(Plugins::new(Some(&settings)));
    let node = Arc::new(SomeNode { containers, ..SomeNode::default() });
    let socket = settings.socket.clone();
    let listening = start(settings, Arc::clone(&plugins), Arc::clone(&node) as Arc<dyn Node>).await.unwrap();
    assert!(listening.socket.is_some());
    Rig { _directory: directory, plugins, node, socket }
}

/// Registers, and returns the connection.
async fn register(socket: &Path) -> (Connection, mpsc::Receiver<Request>) {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (connection, requests) = Connection::start(stream, Side::Plugin);
    let registration = RegisterPluginRequest {
        plugin_name: "a".to_owned(),
        plugin_idx: "10".to_owned(),
        ..RegisterPluginRequest::default()
    };
    let method = (RUNTIME_SERVICE, "RegisterPlugin");
    let _registered: Empty = connection.call(method, &registration, PATIENCE).await.unwrap();
    (connection, requests)
}

async fn next(requests: &mut mpsc::Receiver<Request>, method: &str) -> Request {
    let request = timeout(PATIENCE, requests.recv()).await.unwrap().unwrap();
    assert_eq!(request.content.method, method);
    request
}

async fn shown() -> Box<Shown> {
    Box::default()
}

fn update(id: &str) -> ContainerUpdate {
    let pids = Some(crate::api::LinuxPids { limit: 1 });
    let resources = Some(crate::api::LinuxResources { pids, ..Default::default() });
    let linux = Some(crate::api::LinuxContainerUpdate { resources });
    ContainerUpdate { container_id: id.to_owned(), linux, ignore_failure: false }
}

#[tokio::test]
async fn much_comes_in_several_messages_and_events_come_after_it() {
    let rig = rig(100).await;
    let (connection, mut requests) = register(&rig.socket).await;
    next(&mut requests, "Configure").await.succeed(&ConfigureResponse::default()).await;
    let mut known = Vec::new();
    let mut told = None;
    loop {
        let request = next(&mut requests, "Synchronize").await;
        // From now on the plugin is on the list; what happens has to wait.
        told.get_or_insert_with(|| {
            let plugins = Arc::clone(&rig.plugins);
            tokio::spawn(async move { plugins.tell(Event::RunPodSandbox, "p", shown).await })
        });
        let part = SynchronizeRequest::decode(request.content.payload.as_slice()).unwrap();
        known.extend(part.containers.into_iter().map(|container| container.id));
        let updates = if part.more { vec![] } else { vec![update("1")] };
        request.succeed(&SynchronizeResponse { update: updates, more: part.more }).await;
        if !part.more {
            break;
        }
    }
    assert_eq!(known, (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
    next(&mut requests, "RunPodSandbox").await.succeed(&Empty {}).await;
    told.unwrap().await.unwrap().unwrap();
    assert_eq!(*rig.node.updated.lock().unwrap(), ["1"], "what the plugin wants after its synchronisation");
    let both = vec![update("2"), update("200")];
    let evict = vec![crate::api::ContainerEviction { container_id: "3".to_owned(), reason: String::new() }];
    let method = (RUNTIME_SERVICE, "UpdateContainers");
    let wanted = UpdateContainersRequest { update: both, evict };
    let response: UpdateContainersResponse = connection.call(method, &wanted, PATIENCE).await.unwrap();
    assert_eq!(response.failed, [update("200")]);
    assert_eq!(rig.node.updated.lock().unwrap()[1..], ["evict 3", "2", "200"]);
    let unknown = connection.call::<Empty>((RUNTIME_SERVICE, "Dance"), &Empty {}, PATIENCE).await;
    assert!(unknown.unwrap_err().to_string().contains("Dance"));
}

#[tokio::test]
async fn a_plugin_that_does_not_understand_parts_is_sent_away() {
    let rig = rig(100).await;
    let (connection, mut requests) = register(&rig.socket).await;
    next(&mut requests, "Configure").await.succeed(&ConfigureResponse::default()).await;
    next(&mut requests, "Synchronize").await.succeed(&SynchronizeResponse::default()).await;
    timeout(PATIENCE, connection.ended()).await.unwrap();
    assert!(!rig.plugins.wants(Event::RunPodSandbox));
}

/// What is new is told of by an event if the plugin was not told by its synchronisation, and the other way round.
#[tokio::test]
async fn a_plugin_waits_for_what_is_being_made() {
    let rig = rig(1).await;
    let window = rig.plugins.window().await;
    let (_connection, mut requests) = register(&rig.socket).await;
    next(&mut requests, "Configure").await.succeed(&ConfigureResponse::default()).await;
    let early = timeout(Duration::from_millis(100), requests.recv()).await;
    assert!(early.is_err(), "something is being made");
    assert!(!rig.plugins.wants(Event::RunPodSandbox));
    drop(window);
    next(&mut requests, "Synchronize").await.succeed(&SynchronizeResponse::default()).await;
    assert!(rig.plugins.wants(Event::RunPodSandbox));
    // New things may begin again.
    timeout(PATIENCE, rig.plugins.window()).await.unwrap();
}

/// An older plugin has no methods for most events.
#[tokio::test]
async fn an_older_plugin_is_told_of_events_in_its_way() {
    let rig = rig(0).await;
    let (_connection, mut requests) = register(&rig.socket).await;
    next(&mut requests, "Configure").await.succeed(&ConfigureResponse::default()).await;
    next(&mut requests, "Synchronize").await.succeed(&SynchronizeResponse::default()).await;
    let pod = PodSandbox { id: "p".to_owned(), ..PodSandbox::default() };
    let show = || async { Box::new(Shown { pod, container: None }) };
    let telling = rig.plugins.tell(Event::StopPodSandbox, "p", show);
    let answering = async {
        next(&mut requests, "StopPodSandbox").await.fail(code::UNIMPLEMENTED, "unknown".to_owned()).await;
        let request = next(&mut requests, "StateChange").await;
        let change = crate::api::StateChangeEvent::decode(request.content.payload.as_slice()).unwrap();
        request.succeed(&Empty {}).await;
        change
    };
    let (told, change) = tokio::join!(telling, answering);
    told.unwrap();
    assert_eq!((change.event(), change.pod.unwrap().id), (Event::StopPodSandbox, "p".to_owned()));
}

#[tokio::test]
async fn a_socket_on_which_another_listens_is_left_to_it() {
    let rig = rig(0).await;
    let mut settings = settings(rig.socket.parent().unwrap());
    settings.socket.clone_from(&rig.socket);
    let plugins = Arc::new(Plugins::new(Some(&settings)));
    let node = Arc::new(SomeNode::default());
    let refused = start(settings, plugins, node).await.unwrap_err();
    assert!(chain(&refused).contains("in use"), "{}", chain(&refused));
    register(&rig.socket).await;
}

#[tokio::test]
async fn a_file_in_the_place_of_the_socket_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    tokio::fs::write(&path, "precious").await.unwrap();
    let refused = bind(&path).await.unwrap_err();
    assert!(refused.to_string().contains("no socket"), "{refused}");
    assert_eq!(tokio::fs::read_to_string(&path).await.unwrap(), "precious");
}
