//! What a container needs from the store: its image, those that it mounts, and its seccomp profile. What an image says
//! about itself is hostile and is bounded here. It is read from disk, so all this blocks.

use std::sync::Arc;

use wharf_cri_api::v1::{ContainerConfig, Mount, NamespaceOption, PodSandboxConfig, SecurityProfile};
use wharf_images::{Image, LayerLease, Store, StoreError};
use wharf_planner::{ImageConfig, Refusal, Selinux, seccomp, user_namespace};
use wharf_types::{Failure as _, HostPath, Stage as _, chain};

use crate::error::Error;

/// The images of a container.
#[derive(Debug)]
pub struct Images {
    /// The one that it runs.
    pub own: ImageView,
    /// What that says about running it.
    pub config: ImageConfig,
    /// For each mount of its request that is of an image, that image.
    mounted: Vec<Option<Mounted>>,
    /// The text of the seccomp profile.
    profile: Option<String>,
}

/// An image that is mounted.
#[derive(Debug)]
struct Mounted {
    image: ImageView,
    /// An empty directory of the store.
    empty: HostPath,
}

/// An image as a container uses it.
#[derive(Debug)]
pub struct ImageView {
    /// The image's id.
    pub id: String,
    /// The image, by digest if that is known.
    pub reference: String,
    /// Its layers, topmost first.
    pub layers: Vec<HostPath>,
    /// Keeps the layers while the container has them mounted.
    lease: LayerLease,
}

impl Images {
    /// Finds the images that a request names.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Stage`] if what its image says about running it cannot be read, or
    /// [`Refusal::ImageVolume`] for one that is mounted.
    pub fn find(store: &Store, request: &ContainerConfig) -> Result<Self, Error> {
        let name = request.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        let (own, image) = ImageView::find(store, name)?;
        let config = config(store, (name, &image))?;
        let mounted = |mount: &Mount| {
            let mounted = mount.image.as_ref().map(|image| Mounted::find(store, &image.image));
            mounted.transpose().map_err(|error| not_mounted(mount, &error))
        };
        let mounted = request.mounts.iter().map(mounted).collect::<Result<_, _>>()?;
        let context = request.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let confined = context.filter(|context| !context.privileged);
        let profile = profile(store, confined.and_then(|context| context.seccomp.as_ref()))?;
        Ok(Self { own, config, mounted, profile })
    }

    /// The seccomp profile from a registry that the request names.
    #[must_use]
    pub fn profile(&self) -> Option<&[u8]> {
        self.profile.as_deref().map(str::as_bytes)
    }

    /// All layers.
    pub fn layers(&self) -> impl Iterator<Item = &HostPath> {
        let mounted = self.mounted.iter().flatten().map(|mounted| &mounted.image);
        std::iter::once(&self.own).chain(mounted).flat_map(|image| &image.layers)
    }

    /// For each mount of the request that is of an image, the layers that are merged for it, topmost first.
    ///
    /// A bind of a single one is read-only by a flag alone. In the host's user namespace a container with
    /// `CAP_SYS_ADMIN` can take that away, so there are two at least: what is merged without an upper directory has
    /// nothing that could be written. In a user namespace of its own the kernel has locked the flag. And a label of
    /// SELinux takes a mount of its own.
    ///
    /// # Errors
    /// [`Refusal`] if the pod's namespaces cannot be.
    pub fn mounted_layers(
        &self,
        namespaces: &NamespaceOption,
        selinux: Selinux<'_>,
    ) -> Result<Vec<Option<Vec<HostPath>>>, Refusal> {
        let is_labelled = matches!(selinux, Selinux::On(_));
        let may_bind = user_namespace(namespaces)?.is_some() && !is_labelled;
        let merged = |Mounted { image, empty }: &Mounted| match image.layers.as_slice() {
            [only] if !may_bind => vec![only.clone(), empty.clone()],
            layers => layers.to_vec(),
        };
        Ok(self.mounted.iter().map(|mounted| mounted.as_ref().map(merged)).collect())
    }

    /// For each mount of the request, the id of its image; empty for any other mount.
    #[must_use]
    pub fn mounted_ids(&self) -> Vec<String> {
        let id = |mounted: &Option<Mounted>| {
            mounted.as_ref().map(|mounted| mounted.image.id.clone()).unwrap_or_default()
        };
        self.mounted.iter().map(id).collect()
    }

    /// What keeps the layers of all of them.
    #[must_use]
    pub fn into_leases(self) -> Vec<LayerLease> {
        let mounted = self.mounted.into_iter().flatten().map(|mounted| mounted.image);
        std::iter::once(self.own).chain(mounted).map(|image| image.lease).collect()
    }
}

/// What an image says about running it.
fn config(store: &Store, (name, image): (&str, &Image)) -> Result<ImageConfig, Error> {
    let config = match store.config(image) {
        // It was there a moment ago.
        Err(StoreError::Removed { .. }) => {
            return Err(Error::Missing { what: "image", name: name.to_owned() });
        }
        config => config.stage("reading what the image says about running it")?,
    };
    // The store has limited its length.
    Ok(config.admit(|document| document.config().clone()).unwrap_or_default())
}

/// Checks that the seccomp profile is here that a pod's request names.
///
/// # Errors
/// [`Error::Missing`].
pub fn check_profile(store: &Store, request: &PodSandboxConfig) -> Result<(), Error> {
    let context = request.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let confined = context.filter(|context| !context.privileged);
    profile(store, confined.and_then(|context| context.seccomp.as_ref())).map(drop)
}

/// A seccomp profile, if it is to come from a registry. Nothing is pulled here.
fn profile(store: &Store, asked: Option<&SecurityProfile>) -> Result<Option<String>, Error> {
    let Some(reference) = asked.map(seccomp::reference).transpose()?.flatten() else { return Ok(None) };
    let missing = || Error::Missing { what: "seccomp profile", name: reference.to_string() };
    store.profiles().find(&reference).ok_or_else(missing).map(Some)
}

fn not_mounted(mount: &Mount, error: &Error) -> Error {
    let target = mount.container_path.clone();
    Refusal::ImageVolume { kind: error.kind(), target, problem: chain(error) }.into()
}

impl Mounted {
    fn find(store: &Store, name: &str) -> Result<Self, Error> {
        let (image, _) = ImageView::find(store, name)?;
        let empty = HostPath::new(&store.empty_layer().to_string_lossy()).stage("naming the empty layer")?;
        Ok(Self { image, empty })
    }
}

impl ImageView {
    fn find(store: &Store, name: &str) -> Result<(Self, Arc<Image>), Error> {
        let missing = || Error::Missing { what: "image", name: name.to_owned() };
        let image = store.find(name).ok_or_else(missing)?;
        let layers = image.layers().iter().map(|layer| HostPath::new(&layer.to_string_lossy()));
        let layers = layers.collect::<Result<_, _>>().stage("naming the image's layers")?;
        let lease = store.lease(image.id()).ok_or_else(missing)?;
        let id = image.id().to_string();
        let reference = image.repo_digests().first().cloned().unwrap_or_else(|| id.clone());
        Ok((Self { id, reference, layers, lease }, image))
    }
}
