//! ImageService.
//!
//! Lists and statuses come from the store's memory. What changes the store, or reads its disk, goes through `change`,
//! in a bounded number of threads that may wait. Pulls are the registry client's, and what a registry or an image says
//! is checked there and in the store: here are only the messages. The calls about security profiles are in `profiles`.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use tokio_stream::iter;
use tonic::{Request, Response, Status};
use wharf_cri_api::v1::image_service_server::ImageService;
use wharf_cri_api::v1::{
    AuthConfig, FilesystemIdentifier, FilesystemUsage, Image as ImageItem, ImageFsInfoRequest,
    ImageFsInfoResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse, Int64Value, ListImagesRequest,
    ListImagesResponse, ListSecurityProfilesRequest, ListSecurityProfilesResponse, PullImageRequest,
    PullImageResponse, PullSecurityProfileRequest, PullSecurityProfileResponse, RemoveImageRequest,
    RemoveImageResponse, RemoveSecurityProfileRequest, RemoveSecurityProfileResponse, StreamImagesRequest,
    StreamImagesResponse, UInt64Value,
};
use wharf_images::{Image, ImageUser, Store, StoreError};
use wharf_pods::Engine;
use wharf_registry::{AuthFields, Credentials, Puller};
use wharf_snapshots::tree::Usage;
use wharf_tasks::{CrowdLimits, Threads, pool};

use crate::batches::batches;
use crate::names::Names;
use crate::profiles;
use crate::runtime::Streamed;
use crate::status::{self, Fault};

/// How much waits for the store's disk at a time, of each kind of call and in all: the disk may not respond, and
/// clients give up their calls and come back.
const LIMITS: CrowdLimits = CrowdLimits { of_one: 8, of_all: 32 };

/// Threads for what waits for the store's disk, by kind of call.
static DISK: LazyLock<Threads<&'static str>> =
    LazyLock::new(|| Threads::with_pool("store", LIMITS, pool::IMAGES));

/// The service over an image store and a registry client.
#[derive(Debug, Clone)]
pub struct Images {
    store: Arc<Store>,
    puller: Arc<Puller>,
    names: Names,
    engine: Arc<Engine>,
    pinned: Arc<[String]>,
}

impl Images {
    /// Makes the service. Images whose names match one of `pinned` are told to be pinned; `*` stands for anything.
    #[must_use]
    pub fn new(store: Arc<Store>, puller: Arc<Puller>, engine: Arc<Engine>, pinned: Vec<String>) -> Self {
        let names = Names::new(Arc::clone(&store), Arc::clone(&puller));
        Self { store, puller, names, engine, pinned: pinned.into() }
    }

    async fn list(&self, wanted: Option<ImageSpec>) -> Result<Vec<ImageItem>, Status> {
        let wanted = wanted.map(|spec| spec.image).filter(|name| !name.is_empty());
        let found = match wanted {
            Some(name) => self.store.find(&self.names.here(name).await?).into_iter().collect(),
            None => self.store.list(),
        };
        Ok(found.iter().map(|image| item(image, &self.pinned)).collect())
    }
}

/// Changes the store, or reads from its disk, in a thread that may wait for it; `what` is that, for people.
pub(crate) async fn change<T: Send + 'static>(
    store: &Arc<Store>,
    what: &'static str,
    change: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Status> {
    let told = format!("{what} in {}", store.root().display());
    let store = Arc::clone(store);
    let changed = DISK.run_in_time(&what, told, move || change(&store)).await;
    changed.map_err(status::of)?.map_err(status::of)
}

fn item(image: &Image, pinned: &[String]) -> ImageItem {
    // The store has limited its length.
    // A kubelet that is told of no user runs the image as root. So it is told of one that cannot be, too: what it then
    // asks for is refused.
    let (uid, username) = match image.user() {
        None => (None, String::new()),
        Some(ImageUser::Id(value)) => (Some(Int64Value { value: *value }), String::new()),
        Some(ImageUser::Name(name)) => (None, name.clone()),
    };
    ImageItem {
        id: image.id().to_string(),
        repo_tags: image.repo_tags().to_vec(),
        repo_digests: image.repo_digests().to_vec(),
        size: image.size_bytes(),
        uid,
        username,
        spec: Some(ImageSpec { image: image.id().to_string(), ..ImageSpec::default() }),
        pinned: image.is_pinned() || is_named(image, pinned),
    }
}

/// Whether one of an image's names matches one of the patterns.
fn is_named(image: &Image, patterns: &[String]) -> bool {
    let mut names = image.repo_tags().iter().chain(image.repo_digests());
    names.any(|name| patterns.iter().any(|pattern| matches(pattern, name)))
}

/// Whether a name has the parts of a pattern between its stars, in their order, and begins and ends as the pattern
/// does.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        match name.split_once(part) {
            Some((_skipped, after)) => name = after,
            None => return false,
        }
    }
    name.ends_with(last)
}

/// The image with this name, unless it is known to be damaged: a kubelet pulls only what is missing.
fn usable(store: &Store, name: &str) -> Option<Arc<Image>> {
    store.find(name).filter(|image| !image.is_damaged())
}

/// The additions of a verbose status: what the image says about running it, in the form of its own document, and its
/// layers from the bottom up. They are text for people and tools; nothing acts on them. Blocks for the disk.
fn info(store: &Store, image: &Image) -> Result<BTreeMap<String, String>, StoreError> {
    let layers: Vec<_> =
        image.layers().iter().rev().filter_map(|path| path.parent()?.file_name()?.to_str()).collect();
    // The store has limited the total length.
    let spec = store.config(image)?.admit(|config| serde_json::json!(config));
    let info = serde_json::json!({ "imageSpec": spec, "layers": layers });
    Ok(BTreeMap::from([("info".to_owned(), info.to_string())]))
}

/// The credentials of a request, if it has any.
pub(crate) fn credentials(auth: Option<AuthConfig>) -> Result<Option<Credentials>, Status> {
    let auth = auth.unwrap_or_default();
    let fields = AuthFields {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    };
    Credentials::from_fields(fields).map_err(status::of)
}

#[tonic::async_trait]
impl ImageService for Images {
    type StreamImagesStream = Streamed<StreamImagesResponse>;

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let filter = request.into_inner().filter.and_then(|filter| filter.image);
        Ok(Response::new(ListImagesResponse { images: self.list(filter).await? }))
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let filter = request.into_inner().filter.and_then(|filter| filter.image);
        let images = self.list(filter).await?;
        let messages = batches(images).into_iter().map(|images| Ok(StreamImagesResponse { images }));
        Ok(Response::new(Box::pin(iter(messages))))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let spec = request.image.ok_or_else(|| status::of(Fault::missing("image")))?;
        let name = self.names.here(spec.image).await?;
        let found = match request.verbose {
            true => self.store.find(&name),
            false => usable(&self.store, &name),
        };
        let Some(found) = found else {
            return Ok(Response::new(ImageStatusResponse::default()));
        };
        let mut image = item(&found, &self.pinned);
        // The response does not depend on the name that was used, except for the annotations.
        image.spec.get_or_insert_default().annotations = spec.annotations;
        let info = match request.verbose {
            true => change(&self.store, "reading an image", move |store| info(store, &found)).await?,
            false => BTreeMap::new(),
        };
        Ok(Response::new(ImageStatusResponse { image: Some(image), info }))
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        let spec = request.image.ok_or_else(|| status::of(Fault::missing("image")))?;
        self.engine.handlers().find(&spec.runtime_handler).map_err(status::of)?;
        let credentials = credentials(request.auth)?;
        let image = self.names.pull(&spec.image, credentials).await?;
        Ok(Response::new(PullImageResponse { image_ref: image.id().to_string() }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let spec = request.into_inner().image.ok_or_else(|| status::of(Fault::missing("image")))?;
        let name = self.names.here(spec.image).await?;
        change(&self.store, "removing an image", move |store| store.remove(&name)).await?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn pull_security_profile(
        &self,
        request: Request<PullSecurityProfileRequest>,
    ) -> Result<Response<PullSecurityProfileResponse>, Status> {
        profiles::pull(&self.puller, request.into_inner()).await.map(Response::new)
    }

    async fn list_security_profiles(
        &self,
        _request: Request<ListSecurityProfilesRequest>,
    ) -> Result<Response<ListSecurityProfilesResponse>, Status> {
        let list = change(&self.store, "listing security profiles", |store| Ok(profiles::list(store)));
        list.await.map(Response::new)
    }

    async fn remove_security_profile(
        &self,
        request: Request<RemoveSecurityProfileRequest>,
    ) -> Result<Response<RemoveSecurityProfileResponse>, Status> {
        let digest = profiles::digest(&request.into_inner().digest)?;
        let what = "removing a security profile";
        change(&self.store, what, move |store| store.profiles().remove(&digest)).await?;
        Ok(Response::new(RemoveSecurityProfileResponse {}))
    }

    async fn image_fs_info(
        &self,
        _request: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        self.engine.want_written().await;
        let containers = self.engine.containers();
        let written = containers.iter().filter_map(|container| self.engine.written(container)).sum();
        Ok(Response::new(filesystems(&self.store.root().to_string_lossy(), self.store.usage(), written)))
    }
}

/// The usage of the file system with the images, and of the one with the containers' writable layers, which is the same
/// one: so both have the same name, and a kubelet does not ask its cAdvisor for a second one, of which that knows
/// nothing.
fn filesystems(mountpoint: &str, images: Usage, written: Usage) -> ImageFsInfoResponse {
    let timestamp = wharf_sys::clock::now_ns();
    let filesystem = |used: Usage| FilesystemUsage {
        timestamp,
        fs_id: Some(FilesystemIdentifier { mountpoint: mountpoint.to_owned() }),
        used_bytes: Some(UInt64Value { value: used.bytes }),
        inodes_used: Some(UInt64Value { value: used.inodes }),
    };
    ImageFsInfoResponse {
        image_filesystems: vec![filesystem(images)],
        container_filesystems: vec![filesystem(written)],
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use wharf_images::manifest::digest_of;
    use wharf_images::{Form, LayerSource, NewImage, Sender};

    /// An image of one empty layer, and its store with the directory.
    pub(crate) fn image(config: &serde_json::Value) -> (Arc<Image>, Store, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let layer = [0; 1024];
        let (diff_id, size) = (digest_of(&layer), layer.len());
        let source = LayerSource {
            diff_id: diff_id.clone(),
            form: Form::Archive,
            blob_digest: diff_id.clone(),
            blob_size_bytes: size as u64,
            sender: Sender::default(),
        };
        let unpacked = store.unpack(&source, &mut std::io::Cursor::new(layer)).unwrap();
        let config = serde_json::json!({
            "os": "linux", "architecture": "amd64", "config": config,
            "rootfs": { "type": "layers", "diff_ids": [diff_id.to_string()] },
        });
        let config = config.to_string();
        let media = |kind: &str| format!("application/vnd.oci.image.{kind}");
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": {
                "mediaType": media("config.v1+json"),
                "digest": digest_of(config.as_bytes()).to_string(),
                "size": config.len(),
            },
            "layers": [{ "mediaType": media("layer.v1.tar"), "digest": diff_id.to_string(), "size": size }],
        });
        let manifest = manifest.to_string();
        let digest = digest_of(manifest.as_bytes());
        let new = NewImage {
            names: &["registry.test/app:v1".parse().unwrap()],
            resolved: Some(&digest),
            manifest: manifest.as_bytes(),
            manifest_digest: &digest,
            config: config.as_bytes(),
            layers: vec![unpacked.into()],
            pinned: true,
        };
        (store.commit(new).unwrap(), store, directory)
    }

    #[test]
    fn the_user_of_an_image_is_a_number_or_a_name_or_not_said() {
        let table = [
            ("1000:7", Some(1000), ""),
            ("www-data:7", None, "www-data"),
            ("", None, ""),
            ("4294967295", Some(4_294_967_295), ""),
            ("4294967296:0", Some(4_294_967_296), ""),
            ("99999999999999999999", None, "99999999999999999999"),
            ("app user", None, "app user"),
            (" 0", None, " 0"),
        ];
        for (user, uid, name) in table {
            let (image, _store, _directory) = image(&serde_json::json!({ "User": user }));
            let item = item(&image, &[]);
            let said = (item.uid.map(|uid| uid.value), item.username.as_str());
            assert_eq!(said, (uid, name), "{user:?}");
            assert!(item.pinned && item.size > 0);
            assert_eq!(item.repo_tags, ["registry.test/app:v1"]);
        }
    }

    #[test]
    fn writable_layers_are_on_the_file_system_of_the_images() {
        let written = [Usage { bytes: 5, inodes: 2 }, Usage { bytes: 7, inodes: 1 }];
        let images = Usage { bytes: 100, inodes: 10 };
        let found = filesystems("/var/lib/wharf", images, written.into_iter().sum());
        let [image] = found.image_filesystems.as_slice() else { panic!("{found:?}") };
        let [container] = found.container_filesystems.as_slice() else { panic!("{found:?}") };
        assert_eq!(image.fs_id, container.fs_id, "a kubelet takes other names for separate disks");
        let used = |of: &FilesystemUsage| (of.used_bytes.unwrap().value, of.inodes_used.unwrap().value);
        assert_eq!((used(image), used(container)), ((100, 10), (12, 3)));
    }

    #[test]
    fn a_pattern_is_a_name_with_stars() {
        let name = "registry.k8s.io/pause:3.10";
        for pattern in [name, "*", "registry.k8s.io/*", "*pause*", "registry*/pause:*", "*.10", "r*.*.*:*"] {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in
            ["", "pause", "registry.k8s.io/", "*pause", "*x*", "registry*registry*", "*:3.1", "*.10*.10"]
        {
            assert!(!matches(pattern, name), "{pattern}");
        }
    }

    #[test]
    fn calls_that_are_given_up_leave_the_pool_to_others() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
        let (_image, store, _directory) = image(&serde_json::json!({}));
        runtime.unwrap().block_on(async {
            let (store, mut ends) = (Arc::new(store), Vec::new());
            for _retry in 0..16 {
                let (end, until) = std::sync::mpsc::channel::<()>();
                ends.push(end);
                let stuck = change(&store, "waiting", move |_store| Ok(until.recv().is_ok()));
                assert!(Box::pin(stuck).as_mut().now_or_never().is_none());
            }
            let other = tokio::task::spawn_blocking(|| 7);
            let other = tokio::time::timeout(std::time::Duration::from_secs(20), other).await;
            assert_eq!(other.expect("the pool is stuck").unwrap(), 7);
            change(&store, "reading", |_store| Ok(())).await.expect("another kind is not held up");
            tokio::time::pause();
            let mut late = Box::pin(change(&store, "waiting", |_store| Ok(())));
            assert!(late.as_mut().now_or_never().is_none());
            // Time does not pass by itself while a thread of the pool is at work.
            tokio::time::advance(std::time::Duration::from_secs(91)).await;
            let late = late.await.unwrap_err();
            assert_eq!(late.code(), tonic::Code::Unavailable);
            let named = format!("waiting in {}: no thread was free", store.root().display());
            assert!(late.message().contains(&named), "{late}");
        });
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "it damages a file, and has nothing else to do")]
    fn a_verbose_status_shows_what_the_image_says() {
        let config =
            serde_json::json!({ "Cmd": ["/app"], "Labels": { "a": "b" }, "Volumes": { "/data": {} } });
        let (image, store, directory) = image(&config);
        assert!(usable(&store, "registry.test/app:v1").is_some());
        let text = info(&store, &image).unwrap()["info"].clone();
        let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(shown["imageSpec"]["config"], config);
        assert_eq!(shown["imageSpec"]["os"], "linux");
        assert_eq!(shown["layers"].as_array().unwrap().len(), image.layers().len());
        std::fs::write(directory.path().join("content/sha256").join(image.id().hex()), "{}").unwrap();
        let damaged = status::of(info(&store, &image).unwrap_err());
        assert_eq!(damaged.code(), tonic::Code::DataLoss, "{damaged}");
        assert!(usable(&store, "registry.test/app:v1").is_none(), "a kubelet pulls it again");
        assert_eq!(store.list().len(), 1, "who looks at an image removes nothing");
        assert_eq!(item(&image, &[]).repo_tags, ["registry.test/app:v1"]);
    }
}
