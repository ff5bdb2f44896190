//! Settings in the annotations of a pod, under CRI-O's names. They apply where the node's administrator allows them;
//! elsewhere they are annotations like any other.

use wharf_cri_api::v1::PodSandboxConfig;

use crate::defaults::BadDefault;
use crate::{Defaults, Refusal};

/// An annotation with a meaning.
pub(crate) struct Annotation {
    /// The older name and the newer one.
    pub(crate) names: [&'static str; 2],
    /// What a value is like.
    form: &'static str,
}

/// The umask of programs, in octal digits.
pub(crate) const UMASK: Annotation =
    Annotation { names: ["io.kubernetes.cri-o.umask", "umask.crio.io"], form: "a umask such as 027" };
/// The size of a pod's shared memory.
pub(crate) const SHM_SIZE: Annotation =
    Annotation { names: ["io.kubernetes.cri-o.ShmSize", "shm-size.crio.io"], form: "a size such as 128Mi" };

/// Checks that a name is that of an annotation with a meaning here.
///
/// # Errors
/// It is not one; the error lists those that are.
pub fn allowed(name: &str) -> Result<String, BadDefault> {
    let known = [UMASK.names, SHM_SIZE.names].concat();
    match known.contains(&name) {
        true => Ok(name.to_owned()),
        false => Err(BadDefault::new(name, format!("it is not one of {}", known.join(", ")))),
    }
}

/// Checks the values of a pod's annotations.
///
/// # Errors
/// The first value that is invalid.
pub(crate) fn check(pod: &PodSandboxConfig, defaults: &Defaults) -> Result<(), Refusal> {
    umask(pod, defaults)?;
    shm_bytes(pod, defaults).map(drop)
}

/// The umask that a pod asks for.
pub(crate) fn umask(pod: &PodSandboxConfig, defaults: &Defaults) -> Result<Option<u32>, Refusal> {
    let parse = |text: &str| u32::from_str_radix(text, 8).ok().filter(|umask| *umask <= 0o777);
    read(pod, defaults, &UMASK, parse)
}

/// The size of the shared memory that a pod asks for, in bytes.
pub(crate) fn shm_bytes(pod: &PodSandboxConfig, defaults: &Defaults) -> Result<Option<u64>, Refusal> {
    read(pod, defaults, &SHM_SIZE, size)
}

fn read<T>(
    pod: &PodSandboxConfig,
    defaults: &Defaults,
    Annotation { names, form }: &Annotation,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Refusal> {
    let is_allowed = |name: &&&str| defaults.annotations.iter().any(|allowed| allowed == **name);
    let mut set =
        names.iter().filter(is_allowed).filter_map(|name| Some((name, pod.annotations.get(*name)?)));
    let Some((name, text)) = set.next() else { return Ok(None) };
    match parse(text) {
        Some(value) => Ok(Some(value)),
        None => Err(Refusal::field("annotations", format!("{name}: {text:?} is not {form}"))),
    }
}

/// A quantity in Kubernetes' notation, as far as it is a number of whole bytes.
fn size(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 9] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("", 1),
    ];
    let (number, unit) = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // Less would not even hold the pod's other files.
    number.parse::<u64>().ok()?.checked_mul(*unit).filter(|bytes| *bytes >= 1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, value: &str) -> PodSandboxConfig {
        let annotations = [(name.to_owned(), value.to_owned())].into();
        PodSandboxConfig { annotations, ..PodSandboxConfig::default() }
    }

    fn allowing(name: &str) -> Defaults {
        Defaults { annotations: vec![allowed(name).unwrap()], ..Defaults::default() }
    }

    #[test]
    fn an_annotation_counts_where_it_is_allowed() {
        for name in UMASK.names {
            let pod = pod(name, "0027");
            assert_eq!(umask(&pod, &allowing(name)), Ok(Some(0o027)));
            assert_eq!(umask(&pod, &Defaults::default()), Ok(None));
            assert_eq!(umask(&pod, &allowing(SHM_SIZE.names[0])), Ok(None));
        }
        for name in SHM_SIZE.names {
            assert_eq!(shm_bytes(&pod(name, "2Mi"), &allowing(name)), Ok(Some(2 << 20)));
        }
        assert!(allowed("devices.crio.io").unwrap_err().to_string().contains("umask.crio.io"));
    }

    #[test]
    fn what_is_no_value_is_refused_with_the_name() {
        for (name, text) in [
            (UMASK.names[0], "8"),
            (UMASK.names[0], "1000"),
            (UMASK.names[1], ""),
            (SHM_SIZE.names[0], "many"),
            (SHM_SIZE.names[1], "-1Gi"),
            (SHM_SIZE.names[1], "Mi"),
            (SHM_SIZE.names[1], "1"),
            (SHM_SIZE.names[1], "99999999999Ti"),
        ] {
            let (pod, defaults) = (pod(name, text), allowing(name));
            let refused = check(&pod, &defaults).unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
    }

    #[test]
    fn sizes_are_quantities() {
        for (text, bytes) in
            [("1048576", 1 << 20), ("64Mi", 64 << 20), ("1G", 1_000_000_000), ("2Gi", 2 << 30)]
        {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
    }
}
