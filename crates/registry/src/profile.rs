//! Pulls of security profiles: of an artifact by its digest, with one small file, which is kept apart from images.

use std::sync::Arc;

use bytes::Bytes;
use wharf_images::manifest::{ManifestError, PROFILE_MANIFEST_LIMIT_BYTES, parse_profile};
use wharf_images::{PROFILE_LIMIT_BYTES, StoreError};
use wharf_planner::seccomp::{self, Profile};
use wharf_tasks::ThreadError;
use wharf_types::{ErrorKind, Failure, Reference};

use crate::credentials::Credentials;
use crate::error::{Failures, FetchError};
use crate::hosts::HostsError;
use crate::puller::{Puller, PullerShared};
use crate::session::Session;

/// Where a profile came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProfileOrigin {
    /// It was in the store; no registry was asked.
    Store,
    /// A registry served it for this call, or for one that this call joined.
    Registry,
}

/// Why a security profile could not be pulled. All callers that waited for the pull share it.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The reference has no digest.
    #[error("{reference} has no digest, so what it names may change")]
    NoDigest {
        /// The reference.
        reference: Reference,
    },
    /// The settings of the registry cannot be used.
    #[error("pull of the security profile {reference}")]
    Hosts {
        /// The reference.
        reference: Reference,
        /// Which file, and why.
        #[source]
        source: HostsError,
    },
    /// No host served what is needed.
    #[error("pull of the security profile {reference}: {what}: {failures}")]
    Fetch {
        /// The reference.
        reference: Reference,
        /// What was being fetched.
        what: Part,
        /// The failure of each host.
        failures: Failures,
    },
    /// The artifact is not one of a seccomp profile.
    #[error("pull of the security profile {reference}")]
    Manifest {
        /// The reference.
        reference: Reference,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The profile is not text.
    #[error(
        "pull of the security profile {reference}: it is not text: compressed and packed profiles are refused"
    )]
    NotText {
        /// The reference.
        reference: Reference,
        /// The first bytes that are not.
        #[source]
        source: std::str::Utf8Error,
    },
    /// The profile is invalid.
    #[error("pull of the security profile {reference}")]
    Content {
        /// The reference.
        reference: Reference,
        /// Why.
        #[source]
        source: seccomp::Error,
    },
    /// The store failed.
    #[error("pull of the security profile {reference}")]
    Store {
        /// The reference.
        reference: Reference,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// There is no thread for what may take long, or it is stuck.
    #[error("pull of the security profile {reference}")]
    Thread {
        /// The reference.
        reference: Reference,
        /// Why.
        #[source]
        source: ThreadError,
    },
}

/// A part of a profile's artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The manifest.
    Manifest,
    /// The profile itself.
    Profile,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Manifest => "manifest",
            Self::Profile => "profile",
        })
    }
}

impl Failure for ProfileError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoDigest { .. } | Self::NotText { .. } => ErrorKind::InvalidArgument,
            Self::Hosts { source, .. } => source.kind(),
            Self::Fetch { failures, .. } => failures.kind(),
            Self::Manifest { source, .. } => source.kind(),
            Self::Content { source, .. } => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::Thread { source, .. } => source.kind(),
        }
    }
}

impl ProfileError {
    /// The word with which the CRI wants the message to start, so that the kubelet knows whether to try again.
    #[must_use]
    pub fn cri_prefix(&self) -> Option<&'static str> {
        const INVALID: Option<&str> = Some("SecurityProfileInvalid");
        match self {
            Self::NoDigest { .. } | Self::Manifest { .. } | Self::NotText { .. } | Self::Content { .. } => {
                INVALID
            }
            Self::Fetch { what, failures, .. } => match (failures.all().last(), what) {
                (Some(FetchError::TooLarge { .. }), Part::Manifest) => INVALID,
                // Also if it sends something else than it has been asked for.
                _ if matches!(failures.kind(), ErrorKind::Unavailable | ErrorKind::DataLoss) => {
                    Some("RegistryUnavailable")
                }
                _ => None,
            },
            Self::Hosts { .. } | Self::Store { .. } | Self::Thread { .. } => None,
        }
    }
}

impl Puller {
    /// Pulls a security profile, unless it is in the store, or joins a running pull of the same reference with equal
    /// credentials. The reference is noted in any case. Dropping the future gives up the wait; the pull itself ends
    /// when nobody waits for it any more.
    ///
    /// # Errors
    /// [`ProfileError`], the same for all callers that waited.
    pub async fn pull_profile(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<ProfileOrigin, Arc<ProfileError>> {
        let shared = &self.shared;
        let (store, own) = (shared.store.clone(), reference.clone());
        let noted = in_store(shared, reference, move || store.profiles().refer(&own));
        let noted = noted.await.map_err(Arc::new)?;
        if noted {
            return Ok(ProfileOrigin::Store);
        }
        let pull = || {
            let pull = Pull { shared: Arc::clone(shared), reference: reference.clone() };
            let credentials = credentials.clone();
            async move { pull.run(credentials).await.map_err(Arc::new) }
        };
        shared.profiles.share((reference.clone(), credentials.clone()), pull).await?;
        Ok(ProfileOrigin::Registry)
    }
}

/// Changes the store.
async fn in_store<T: Send + 'static>(
    shared: &PullerShared,
    reference: &Reference,
    change: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ProfileError> {
    let what = ("keeping security profiles", shared.store.root());
    let changed = shared.disks.images(reference.host(), what, change).await;
    let changed = changed.map_err(|source| ProfileError::Thread { reference: reference.clone(), source })?;
    changed.map_err(|source| ProfileError::Store { reference: reference.clone(), source })
}

/// One pull.
struct Pull {
    shared: Arc<PullerShared>,
    reference: Reference,
}

impl Pull {
    async fn run(self, credentials: Option<Credentials>) -> Result<(), ProfileError> {
        let session = self.session(credentials).await?;
        let profile = self.fetch(&session).await?;
        let reference = || self.reference.clone();
        let text = std::str::from_utf8(&profile);
        let text =
            text.map_err(|source| ProfileError::NotText { reference: reference(), source })?.to_owned();
        Profile::parse_artifact(text.as_bytes())
            .map_err(|source| ProfileError::Content { reference: reference(), source })?;
        let (store, own) = (self.shared.store.clone(), reference());
        in_store(&self.shared, &self.reference, move || store.profiles().keep(&own, text)).await
    }

    async fn session(&self, credentials: Option<Credentials>) -> Result<Session, ProfileError> {
        let reference = || self.reference.clone();
        let opened = self.shared.session(&self.reference, credentials).await;
        let opened = opened.map_err(|source| ProfileError::Thread { reference: reference(), source })?;
        opened.map_err(|source| ProfileError::Hosts { reference: reference(), source })
    }

    /// The profile's bytes. All that can be checked is checked before they are fetched.
    async fn fetch(&self, session: &Session) -> Result<Bytes, ProfileError> {
        let reference = || self.reference.clone();
        let failed = |what| move |failures| ProfileError::Fetch { reference: reference(), what, failures };
        let digest =
            self.reference.digest().ok_or_else(|| ProfileError::NoDigest { reference: reference() })?;
        let manifest = session.manifest_bytes(digest, PROFILE_MANIFEST_LIMIT_BYTES).await;
        let (manifest, content_type) = manifest.map_err(failed(Part::Manifest))?;
        let profile = parse_profile(&manifest, content_type.as_deref())
            .map_err(|source| ProfileError::Manifest { reference: reference(), source })?;
        session.small_blob(&profile, PROFILE_LIMIT_BYTES).await.map_err(failed(Part::Profile))
    }
}
