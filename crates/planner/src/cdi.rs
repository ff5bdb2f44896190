//! Devices by the Container Device Interface (CDI): a vendor's file says what a container needs to use a device, and a
//! request names the device. Here the names are taken from the request, a file's content is parsed, and its edits are
//! applied to the description. Finding and reading the files is the caller's business.

mod edit;
mod file;
mod number;

use std::fmt;

use wharf_cri_api::v1::ContainerConfig;
use wharf_types::ErrorKind;

use crate::Refusal;

pub use edit::apply;
pub use file::{Device, Edits, File, Hook, Mount, NetDevice, Node, Rdt};

/// The prefix of the annotations that name devices.
const ANNOTATION: &str = "cdi.k8s.io/";
/// The most devices that one container can request.
const DEVICES_MAX: usize = 512;

/// The whole name of a device: `vendor.com/class=name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(String);

impl DeviceName {
    /// Parses a name.
    ///
    /// # Errors
    /// The part that is wrong.
    pub fn new(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(kind, name)| Some((kind.split_once('/')?, name)));
        let ((vendor, class), name) = parts.ok_or("it is not of the form vendor.com/class=name")?;
        check_kind_part("vendor", vendor)?;
        check_kind_part("class", class)?;
        check_device(name)?;
        Ok(Self(text.to_owned()))
    }

    /// The device `name` of a kind; both were checked.
    fn of(kind: &str, name: &str) -> Self {
        Self(format!("{kind}={name}"))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A refusal that names this device: the node does not have what it needs.
    pub fn refusal(&self, problem: impl fmt::Display) -> Refusal {
        self.unread(ErrorKind::FailedPrecondition, problem)
    }

    /// A refusal that names this device, of the class of what could not be read.
    pub fn unread(&self, kind: ErrorKind, problem: impl fmt::Display) -> Refusal {
        let what = format!("CDI device {:?}", self.0);
        Refusal::Addition { kind, what, problem: problem.to_string() }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The edits of one file for one device, or for all devices in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addition {
    /// The device for which they are made.
    pub device: DeviceName,
    /// The edits.
    pub edits: Edits,
}

/// The devices that a request names, each once: those of the field, then those of the annotations.
///
/// # Errors
/// [`Refusal`] for what is not a device's name.
pub fn asked(config: &ContainerConfig) -> Result<Vec<DeviceName>, Refusal> {
    let mut names = Vec::new();
    for device in &config.cdi_devices {
        let name = DeviceName::new(&device.name);
        let name =
            name.map_err(|problem| Refusal::field("CDI_devices", format!("{:?}: {problem}", device.name)));
        add(&mut names, name?)?;
    }
    let annotated = config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION));
    for (key, value) in annotated {
        for text in value.split(',') {
            let problem =
                |problem| Refusal::field("annotations", format!("{key}: the device {text:?}: {problem}"));
            add(&mut names, DeviceName::new(text).map_err(problem)?)?;
        }
    }
    Ok(names)
}

/// Counted here, because each name is compared with all that are there.
fn add(names: &mut Vec<DeviceName>, name: DeviceName) -> Result<(), Refusal> {
    if names.contains(&name) {
        return Ok(());
    }
    if names.len() == DEVICES_MAX {
        return Err(Refusal::field("CDI_devices", format!("at most {DEVICES_MAX} devices are allowed")));
    }
    names.push(name);
    Ok(())
}

/// A vendor or a class: letters, digits, `_`, `-` and `.`; it begins with a letter, and ends with a letter or a digit.
fn check_kind_part(what: &str, text: &str) -> Result<(), String> {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic());
    if begins && ends_well(text) && text.chars().all(|c| is_of_name(c, "_-.")) {
        return Ok(());
    }
    Err(format!("the {what} {text:?} must be letters, digits, _, - and ., and begin with a letter"))
}

/// A device: as a class, but with `:` in it, and it may begin with a digit.
fn check_device(text: &str) -> Result<(), String> {
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && ends_well(text) && text.chars().all(|c| is_of_name(c, "_-.:")) {
        return Ok(());
    }
    Err(format!(
        "the device {text:?} must be letters, digits, _, -, . and :, and begin with a letter or a digit"
    ))
}

fn ends_well(text: &str) -> bool {
    text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

fn is_of_name(c: char, others: &str) -> bool {
    c.is_ascii_alphanumeric() || others.contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::CdiDevice;

    fn config(devices: &[&str], annotations: &[(&str, &str)]) -> ContainerConfig {
        let device = |name: &&str| CdiDevice { name: (*name).to_owned() };
        let annotation = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        ContainerConfig {
            cdi_devices: devices.iter().map(device).collect(),
            annotations: annotations.iter().map(annotation).collect(),
            ..ContainerConfig::default()
        }
    }

    fn names(devices: &[&str], annotations: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let asked = asked(&config(devices, annotations)).map_err(|refusal| refusal.to_string())?;
        Ok(asked.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn both_ways_to_ask_are_one_and_a_device_counts_once() {
        let annotations = [
            ("cdi.k8s.io/b", "vendor.com/gpu=1,vendor.com/gpu=0"),
            ("cdi.k8s.io/a", "vendor.com/nic=eth0"),
            ("example.org/cdi.k8s.io", "anything"),
        ];
        let asked = names(&["vendor.com/gpu=0", "vendor.com/gpu=0"], &annotations).unwrap();
        assert_eq!(asked, ["vendor.com/gpu=0", "vendor.com/nic=eth0", "vendor.com/gpu=1"]);
        assert_eq!(names(&[], &[]).unwrap(), [""; 0]);
    }

    #[test]
    fn a_name_has_a_vendor_a_class_and_a_device() {
        for good in ["a/b=c", "vendor.com/some_class.x-y=0", "v.com/gpu=GPU-1:2.3_4"] {
            assert_eq!(DeviceName::new(good).unwrap().as_str(), good);
        }
        let bad = [
            "",
            "gpu",
            "gpu=0",
            "vendor.com/gpu",
            "/gpu=0",
            "vendor.com/=0",
            "vendor.com/gpu=",
            "1vendor/gpu=0",
            "vendor./gpu=0",
            "vendor.com/gpu=-0",
            "vendor.com/gpu=../0",
            "vendor.com/gpu=0\n",
            "vendor.com/g/pu=0",
            "véndor/gpu=0",
        ];
        for bad in bad {
            let refused = names(&[bad], &[]).unwrap_err();
            assert!(refused.starts_with("CDI_devices: "), "{bad:?}: {refused}");
            let refused = names(&[], &[("cdi.k8s.io/x", bad)]).unwrap_err();
            assert!(refused.starts_with("annotations: cdi.k8s.io/x: "), "{bad:?}: {refused}");
        }
    }

    #[test]
    fn a_request_for_countless_devices_is_refused() {
        let many: Vec<String> = (0..=DEVICES_MAX).map(|number| format!("a/b={number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(names(&many, &[]).unwrap_err().contains("at most"));
        assert_eq!(names(&many[1..], &[]).unwrap().len(), DEVICES_MAX);
    }
}
