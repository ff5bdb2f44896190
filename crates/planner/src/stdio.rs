//! Where the container's input comes from and its output goes.

use wharf_isolation::{Input, LogFile};
use wharf_types::HostPath;

use crate::Refusal;
use crate::request::Request;

/// The log is below the pod's log directory; without that directory, or without a name in the container's request,
/// there is none.
pub(crate) fn log(request: &Request<'_>) -> Result<Option<LogFile>, Refusal> {
    let directory = &request.pod.log_directory;
    let name = log_name(&request.container.log_path)?;
    let Some(name) = name.filter(|_| !directory.is_empty()) else { return Ok(None) };
    let directory = HostPath::new(directory).map_err(|error| Refusal::field("log_directory", error))?;
    Ok(Some(LogFile { directory, name, limits: request.defaults.log }))
}

/// Unless it is requested, the input is empty, whatever the request says about its end.
pub(crate) fn input(request: &Request<'_>) -> Input {
    match (request.container.stdin, request.container.stdin_once) {
        (false, _) => Input::Empty,
        (true, false) => Input::Kept,
        (true, true) => Input::Once,
    }
}

/// The name of a log below the pod's log directory; `None` for an empty name. The limits are the kernel's.
fn log_name(name: &str) -> Result<Option<String>, Refusal> {
    const PATH_LIMIT_BYTES: usize = 4095;
    const PART_LIMIT_BYTES: usize = 255;
    if name.len() > PATH_LIMIT_BYTES || name.split('/').any(|part| part.len() > PART_LIMIT_BYTES) {
        let problem = format!(
            "it is longer than {PATH_LIMIT_BYTES} bytes, or has a component longer than {PART_LIMIT_BYTES}"
        );
        return Err(Refusal::field("log_path", problem));
    }
    if name.split('/').any(|part| part == "..") || name.starts_with('/') || name.contains('\0') {
        return Err(Refusal::field("log_path", format!("{name:?} leads out of the log directory")));
    }
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_below_its_directory() {
        for good in ["0.log", "main/0.log", "..log", &"a".repeat(255)] {
            assert_eq!(log_name(good), Ok(Some(good.to_owned())));
        }
        assert_eq!(log_name(""), Ok(None));
        for bad in ["/0.log", "../0.log", "a/../b", "a\0", &"a".repeat(256), &"a/".repeat(2048)] {
            assert!(log_name(bad).is_err(), "{bad:?}");
        }
    }
}
