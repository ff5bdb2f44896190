//! A plugin for tests: it notes what it is asked, and responds as the test says.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use tokio::net::UnixStream;
use wharf_nri::api::*;
use wharf_nri::wire::{CallError, Connection, RUNTIME_SERVICE, Request, Side};

use crate::world::until;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a plugin responds.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Nothing,
    Configure(ConfigureResponse),
    Create(Box<CreateContainerResponse>),
    Update(UpdateContainerResponse),
    Stop(StopContainerResponse),
    Validate(ValidateContainerAdjustmentResponse),
    /// An error with this message.
    Fail(&'static str),
    /// Never.
    Hang,
    /// It ends the connection instead.
    Die,
}

/// The methods and the messages of requests.
type Requests = Vec<(String, Vec<u8>)>;

/// A request to a plugin: its method and the message's bytes.
pub(crate) type Asked<'a> = (&'a str, &'a [u8]);

/// A connected plugin. Its connection ends with it.
#[derive(Debug)]
pub(crate) struct Plugin {
    pub(crate) connection: Connection,
    asked: Arc<Mutex<Requests>>,
}

/// A pod or a container, in any of the requests that have them: the fields have the same numbers.
#[derive(Clone, PartialEq, Message)]
struct Subject {
    #[prost(message, optional, tag = "1")]
    pod: Option<PodSandbox>,
    #[prost(message, optional, tag = "2")]
    container: Option<Container>,
}

/// A plugin that is to connect.
pub(crate) struct Plan {
    pub(crate) index: &'static str,
    pub(crate) name: &'static str,
    pub(crate) respond: Box<dyn Fn(Asked<'_>) -> Reply + Send>,
}

impl Plan {
    pub(crate) fn new(
        index: &'static str,
        name: &'static str,
        respond: impl Fn(Asked<'_>) -> Reply + Send + 'static,
    ) -> Self {
        Self { index, name, respond: Box::new(respond) }
    }

    /// Connects, and returns once the plugin knows what exists.
    pub(crate) async fn connect(self, directory: &Path) -> Plugin {
        let plugin = self.register(directory).await.unwrap();
        until("the plugin is synchronised", async || plugin.has("Synchronize").then_some(())).await;
        plugin
    }

    /// Connects and registers.
    pub(crate) async fn register(self, directory: &Path) -> Result<Plugin, CallError> {
        let socket = directory.join("nri.sock");
        let stream = until("the socket is there", async || UnixStream::connect(&socket).await.ok()).await;
        let (connection, mut requests) = Connection::start(stream, Side::Plugin);
        let plugin = Plugin { connection: connection.clone(), asked: Arc::default() };
        let (asked, respond) = (Arc::clone(&plugin.asked), self.respond);
        let own = connection.clone();
        tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                let (method, payload) = (request.content.method.clone(), request.content.payload.clone());
                let reply = respond((&method, &payload));
                asked.lock().unwrap().push((method, payload));
                answer(&own, request, reply).await;
            }
        });
        let registration = RegisterPluginRequest {
            plugin_name: self.name.to_owned(),
            plugin_idx: self.index.to_owned(),
            nri_version: String::new(),
        };
        let _registered: Empty =
            connection.call((RUNTIME_SERVICE, "RegisterPlugin"), &registration, PATIENCE).await?;
        Ok(plugin)
    }
}

async fn answer(connection: &Connection, request: Request, reply: Reply) {
    match reply {
        Reply::Nothing => request.succeed(&Empty {}).await,
        Reply::Configure(message) => request.succeed(&message).await,
        Reply::Create(message) => request.succeed(&*message).await,
        Reply::Update(message) => request.succeed(&message).await,
        Reply::Stop(message) => request.succeed(&message).await,
        Reply::Validate(message) => request.succeed(&message).await,
        Reply::Fail(message) => request.fail(2, message.to_owned()).await,
        Reply::Hang => {}
        Reply::Die => connection.close(),
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.connection.close();
    }
}

impl Plugin {
    /// Whether it was asked with a method.
    pub(crate) fn has(&self, method: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|(asked, _)| asked == method)
    }

    /// The methods with which it was asked about a pod or one of its containers, with the names of these.
    pub(crate) fn events(&self, pod: &str) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let about = |(method, payload): &(String, Vec<u8>)| {
            let subject = Subject::decode(payload.as_slice()).ok()?;
            let name = subject.pod.filter(|shown| shown.name == pod)?.name;
            let container = subject.container.map(|container| container.name).filter(|name| !name.is_empty());
            Some(format!("{method} {}", container.unwrap_or(name)))
        };
        let of_pods = asked.iter().filter(|(method, _)| !matches!(&**method, "Configure" | "Synchronize"));
        of_pods.filter_map(about).collect()
    }

    /// The last message of a method.
    pub(crate) fn last<M: Message + Default>(&self, method: &str) -> M {
        let asked = self.asked.lock().unwrap();
        let (_, payload) = asked.iter().rev().find(|(asked, _)| asked == method).expect(method);
        M::decode(payload.as_slice()).unwrap()
    }

    /// Has containers updated that no request is about, and returns the ids of those that were not.
    pub(crate) async fn update(&self, update: Vec<ContainerUpdate>) -> Result<Vec<String>, CallError> {
        let request = UpdateContainersRequest { update, evict: Vec::new() };
        let response: UpdateContainersResponse =
            self.connection.call((RUNTIME_SERVICE, "UpdateContainers"), &request, PATIENCE).await?;
        Ok(response.failed.into_iter().map(|failed| failed.container_id).collect())
    }
}

/// An adjustment as a response.
pub(crate) fn adjusting(change: impl FnOnce(&mut ContainerAdjustment)) -> Reply {
    let mut adjust = ContainerAdjustment::default();
    change(&mut adjust);
    Reply::Create(Box::new(CreateContainerResponse { adjust: Some(adjust), ..Default::default() }))
}

/// An update of a container's share of the CPUs.
pub(crate) fn shares(id: &str, value: u64) -> ContainerUpdate {
    let cpu = LinuxCpu { shares: Some(OptionalUInt64 { value }), ..LinuxCpu::default() };
    let resources = LinuxResources { cpu: Some(cpu), unified: BTreeMap::new(), ..LinuxResources::default() };
    ContainerUpdate {
        container_id: id.to_owned(),
        linux: Some(LinuxContainerUpdate { resources: Some(resources) }),
        ignore_failure: false,
    }
}
