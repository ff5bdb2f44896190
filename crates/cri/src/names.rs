//! Images by names without a registry, which `registries.conf` may give several meanings.

use std::sync::Arc;

use tonic::Status;
use wharf_cri_api::v1::ContainerConfig;
use wharf_images::{Image, Store};
use wharf_registry::{Credentials, Puller};
use wharf_types::{ErrorKind, Failure, Reference, ReferenceError, chain};

use crate::status::{self, Fault};
use crate::subject;

/// What says what names mean, and which images are here.
#[derive(Debug, Clone)]
pub struct Names {
    store: Arc<Store>,
    puller: Arc<Puller>,
}

/// Why no meaning of a name could be pulled: each that was tried, in order. The last one decides.
#[derive(Debug, thiserror::Error)]
#[error("{}", told.join("; "))]
struct Tried {
    told: Vec<String>,
    kind: ErrorKind,
}

impl Failure for Tried {
    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl Names {
    /// Makes one over an image store and a registry client.
    #[must_use]
    pub fn new(store: Arc<Store>, puller: Arc<Puller>) -> Self {
        Self { store, puller }
    }

    /// What the store knows an image by: which of a name's meanings is here, or the id that it is the beginning of. To
    /// the store, a name without a registry is one of docker.io, so it gets such a name only if it means just that. An
    /// error if it cannot be said what the name means.
    pub(crate) async fn here(&self, name: String) -> Result<String, Status> {
        let written = name.parse::<Reference>().ok().filter(|_| !name.starts_with("sha256:"));
        // Otherwise the store takes it for an id.
        let Some(written) = written else { return Ok(name) };
        let by_id = || self.store.find_by_id(&name).map(|image| image.id().to_string());
        let meanings = match self.puller.names(&name).await {
            Ok(meanings) => meanings,
            Err(error) => return by_id().ok_or_else(|| status::of(error)),
        };
        if meanings == [written] {
            return Ok(name);
        }
        let mut texts = meanings.iter().map(ToString::to_string);
        let here = texts.find(|meaning| self.store.find(meaning).is_some()).or_else(by_id);
        let first = || meanings.first().map(ToString::to_string);
        here.or_else(first).ok_or_else(|| status::of(Fault::missing("image")))
    }

    /// The same of the images that a container needs.
    pub(crate) async fn of_container(&self, config: &mut ContainerConfig) -> Result<(), Status> {
        let mounted = config.mounts.iter_mut().filter_map(|mount| mount.image.as_mut());
        for spec in config.image.iter_mut().chain(mounted) {
            spec.image = self.here(std::mem::take(&mut spec.image)).await?;
        }
        Ok(())
    }

    /// Pulls an image by the first of its name's meanings that is in its registry. After any other failure none is
    /// tried: whoever keeps a registry from responding must not choose which image a name means.
    pub(crate) async fn pull(
        &self,
        name: &str,
        credentials: Option<Credentials>,
    ) -> Result<Arc<Image>, Status> {
        let written: Reference = name.parse().map_err(|error: ReferenceError| status::of(error))?;
        let (mut failed, mut told) = (status::of(Fault::missing("image")), Vec::new());
        for meaning in self.puller.names(name).await.map_err(status::of)? {
            subject::image(&meaning);
            let own = credentials.clone().filter(|all| all.may_be_for(&meaning, &written));
            let error = match self.puller.pull(&meaning, own).await {
                Ok(image) => return Ok(image),
                Err(error) => error,
            };
            told.push(chain(&*error));
            failed = status::of_pull(error.cri_prefix(), &Tried { told: told.clone(), kind: error.kind() });
            if error.kind() != ErrorKind::NotFound {
                break;
            }
        }
        Err(failed)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests make files, and have nothing else to do")]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tonic::Code;
    use wharf_registry::{AuthFields, Config};

    use crate::image::tests::image;

    /// A store with one image, and what names mean by a file.
    struct World {
        names: Names,
        store: Arc<Store>,
        id: String,
        dir: tempfile::TempDir,
    }

    impl World {
        fn new(conf: &str) -> Self {
            let (image, store, dir) = image(&serde_json::json!({}));
            let (store, mut config) = (Arc::new(store), Config::default());
            config.files.registries_conf = Some(dir.path().join("registries.conf"));
            let puller = Arc::new(Puller::new(Arc::clone(&store), config));
            let names = Names::new(Arc::clone(&store), puller);
            let world = Self { names, store, id: image.id().to_string(), dir };
            world.conf(conf);
            world
        }

        fn conf(&self, text: &str) {
            std::fs::write(self.dir.path().join("registries.conf"), text).unwrap();
        }

        fn tag(&self, name: &str) {
            assert!(self.store.tag(&self.id, &name.parse().unwrap()).unwrap());
        }

        /// The image that a name finds.
        async fn find(&self, name: &str) -> Result<Option<String>, Code> {
            let here = self.names.here(name.to_owned()).await.map_err(|status| status.code())?;
            Ok(self.store.find(&here).map(|image| image.id().to_string()))
        }
    }

    const SEARCH: &str = "unqualified-search-registries = [\"a.b\", \"c.d\"]\n";

    #[tokio::test]
    async fn a_short_name_finds_only_what_it_means() {
        let world = World::new("");
        world.tag("docker.io/team/app:v1");
        let found = Ok(Some(world.id.clone()));
        assert_eq!(world.find("team/app:v1").await, found, "it is docker.io's if no file says anything");
        let alias = "[aliases]\n\"team/app\" = \"a.b/team/app\"";
        let permissive = format!("{SEARCH}short-name-mode = \"permissive\"");
        for conf in ["unqualified-search-registries = [\"a.b\"]", alias, &permissive] {
            world.conf(conf);
            assert_eq!(world.find("team/app:v1").await, Ok(None), "{conf}");
        }
        for conf in [SEARCH, "rubbish"] {
            world.conf(conf);
            assert_eq!(world.find("team/app:v1").await, Err(Code::FailedPrecondition), "{conf}");
            assert_eq!(world.find("docker.io/team/app:v1").await, found);
        }
        world.conf(&permissive);
        world.tag("c.d/team/app:v1");
        assert_eq!(world.find("team/app:v1").await, found);
    }

    #[tokio::test]
    async fn ids_and_their_beginnings_are_found_whatever_the_files_say() {
        let world = World::new("");
        let (found, hex) = (Ok(Some(world.id.clone())), world.id.trim_start_matches("sha256:").to_owned());
        for conf in ["", SEARCH, "unqualified-search-registries = [\"a.b\"]", "rubbish"] {
            world.conf(conf);
            for name in [world.id.as_str(), &hex, &hex[..12], &world.id[..19]] {
                assert_eq!(world.find(name).await, found, "{name} with {conf:?}");
            }
            assert_eq!(world.find("registry.test/app:v1").await, found);
        }
    }

    /// What a registry that answers everything with this status has been sent.
    async fn registry(status: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, heard) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let all = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = client.read_u8().await else { break };
                    request.push(byte);
                }
                all.lock().unwrap().push(String::from_utf8_lossy(&request).to_lowercase());
                let close = "www-authenticate: Basic realm=\"x\"\r\ncontent-length: 0\r\nconnection: close";
                let _gone =
                    client.write_all(format!("HTTP/1.1 {status}\r\n{close}\r\n\r\n").as_bytes()).await;
            }
        });
        (address, heard)
    }

    #[tokio::test]
    async fn only_what_is_not_there_is_looked_for_elsewhere() {
        for (status, is_passed, code) in
            [("404 Not Found", true, Code::NotFound), ("401 Unauthorized", false, Code::PermissionDenied)]
        {
            let ((first, asked), (second, also)) = (registry(status).await, registry("404 Not Found").await);
            let search = format!("unqualified-search-registries = [\"{first}\", \"{second}\"]");
            let world = World::new(&format!("{search}\nshort-name-mode = \"permissive\""));
            let failed = world.names.pull("team/app", None).await.unwrap_err();
            assert_eq!(failed.code(), code, "{failed}");
            assert!(!asked.lock().unwrap().is_empty());
            assert_eq!(!also.lock().unwrap().is_empty(), is_passed, "{status}");
            let told = [first, second].map(|address| format!("pulling {address}/team/app:latest"));
            assert!(failed.message().starts_with(&told[0]), "{failed}");
            assert_eq!(failed.message().contains(&format!("; {}", told[1])), is_passed, "{failed}");
        }
    }

    #[tokio::test]
    async fn what_a_short_name_means_elsewhere_gets_no_credentials_of_docker() {
        let (address, heard) = registry("401 Unauthorized").await;
        let world = World::new(&format!("unqualified-search-registries = [\"{address}\"]"));
        let fields =
            AuthFields { username: "me".into(), password: "hunter2".into(), ..AuthFields::default() };
        let credentials = Credentials::from_fields(fields).unwrap();
        let shown = || heard.lock().unwrap().iter().any(|request| request.contains("authorization: "));
        world.names.pull("victim/app", credentials.clone()).await.unwrap_err();
        assert!(!heard.lock().unwrap().is_empty() && !shown());
        world.names.pull(&format!("{address}/victim/app"), credentials).await.unwrap_err();
        assert!(shown(), "a client that names the registry means it");
    }
}
