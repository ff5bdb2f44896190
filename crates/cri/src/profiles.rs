//! The calls of ImageService that are about security profiles.
//!
//! Only seccomp profiles can be pulled. They are kept in the store, by digest and with the names under which they were
//! pulled. Which container gets which one is the planner's decision, and nothing here.

use wharf_cri_api::v1::{
    ListSecurityProfilesResponse, PullSecurityProfileRequest, PullSecurityProfileResponse,
    SecurityProfileInfo, SecurityProfileKind,
};
use wharf_images::{ProfileItem, Store};
use wharf_registry::{ProfileOrigin, Puller};
use wharf_types::{Digest, DigestError, Reference};

use tonic::Status;

use crate::image::credentials;
use crate::status::{self, Fault};

/// Pulls a profile, if it is not here.
pub(crate) async fn pull(
    puller: &Puller,
    request: PullSecurityProfileRequest,
) -> Result<PullSecurityProfileResponse, Status> {
    let reference = wanted(&request).map_err(|fault| status::of_profile(&fault))?;
    let pulled = puller.pull_profile(&reference, credentials(request.auth)?).await;
    let origin = pulled.map_err(|error| status::of_pull(error.cri_prefix(), &*error))?;
    Ok(PullSecurityProfileResponse { cached: origin == ProfileOrigin::Store })
}

/// The reference that a request names.
fn wanted(request: &PullSecurityProfileRequest) -> Result<Reference, Fault> {
    if request.profile_kind() != SecurityProfileKind::Seccomp {
        let problem = "only profiles of the kind Seccomp are known".to_owned();
        return Err(Fault::Invalid { field: "profile_kind", problem });
    }
    let name = request.image.as_ref().map(|spec| spec.image.as_str()).unwrap_or_default();
    if name.is_empty() {
        return Err(Fault::missing("image"));
    }
    Reference::canonical(name).map_err(|error| Fault::Invalid { field: "image", problem: error.to_string() })
}

/// The profiles that are here.
pub(crate) fn list(store: &Store) -> ListSecurityProfilesResponse {
    let info = |ProfileItem { digest, references, size_bytes }| SecurityProfileInfo {
        digest: digest.to_string(),
        refs: references,
        size: size_bytes,
    };
    ListSecurityProfilesResponse { profiles: store.profiles().list().into_iter().map(info).collect() }
}

/// The digest of a profile that is to be removed.
pub(crate) fn digest(text: &str) -> Result<Digest, Status> {
    if text.is_empty() {
        return Err(status::of(Fault::empty("digest")));
    }
    text.parse().map_err(|error: DigestError| {
        status::of(Fault::Invalid { field: "digest", problem: error.to_string() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;
    use wharf_cri_api::v1::ImageSpec;

    #[test]
    fn only_a_canonical_reference_of_a_known_kind_is_pulled() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let request = |image: &str, profile_kind| PullSecurityProfileRequest {
            image: Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() }),
            profile_kind,
            ..PullSecurityProfileRequest::default()
        };
        let good = format!("registry.test/p@{digest}");
        assert_eq!(wanted(&request(&good, 1)).unwrap().to_string(), good);
        let tagged = format!("registry.test/p:t@{digest}");
        let short = format!("p@{digest}");
        for (image, kind) in
            [(&*good, 0), (&good, 2), ("", 1), ("registry.test/p:t", 1), (&tagged, 1), (&short, 1)]
        {
            let status = status::of_profile(&wanted(&request(image, kind)).unwrap_err());
            assert_eq!(status.code(), Code::InvalidArgument, "{image}");
            assert!(status.message().starts_with("SecurityProfileInvalid: "), "{status}");
        }
        wanted(&PullSecurityProfileRequest { profile_kind: 1, ..Default::default() }).unwrap_err();
    }

    #[test]
    fn a_profile_is_removed_by_its_digest_alone() {
        for bad in ["", "p", "registry.test/p"] {
            assert_eq!(super::digest(bad).unwrap_err().code(), Code::InvalidArgument, "{bad}");
        }
        super::digest(&format!("sha256:{}", "ab".repeat(32))).unwrap();
    }
}
