//! Every decision about a pod ([`plan_pod`]) and about a container, before anything of it is made: from a CRI request,
//! its image and facts about the host to the OCI runtime spec ([`describe`]), and from that to the supervisor's plan
//! ([`plan`]) and the cgroup's limits ([`limits`]).
//!
//! All of it is pure: it uses no file, no clock and no system call, and the same arguments give the same result. What
//! must be known about the machine is in [`HostFacts`] and [`HostNames`], which the caller gathers. So anything that is
//! to change containers on the way (devices through CDI, plugins through NRI) is a step on the [`Description`], in the
//! field's own terms.
//!
//! Nothing is silently left out. A request is fulfilled or refused ([`check`]), and so is a description.

pub mod annotations;
mod apparmor;
mod arguments;
mod block_io;
mod capabilities;
mod cgroup_view;
pub mod defaults;
mod description;
mod devices;
mod enclosure;
mod environment;
mod handover;
mod key;
mod limits;
mod mounts;
mod namespaces;
mod plan;
mod pod;
mod privilege;
mod process;
mod refusal;
mod refuse;
mod request;
mod saved_spec;
mod stdio;
mod traits;
mod unsupported;
mod user;
mod user_namespace;
mod volumes;

pub mod cdi;
pub mod hooks;
pub mod seccomp;
pub mod selinux;
pub mod stop_signal;

#[cfg(test)]
mod tests;

pub use oci_spec::image::Config as ImageConfig;

pub use arguments::check_command;
pub use defaults::Defaults;
pub use description::{Description, Extra, Seccomp, describe};
pub use enclosure::is_enclosed;
pub use handover::{Features, OtherRuntime, SandboxPlace, Workplace};
pub use key::{ContainerKey, PodKey};
pub use limits::{check as check_resources, limits, merge as merge_resources, oom_score, resources};
pub use mounts::{ETC_FILES, SHM};
pub use namespaces::{Kind as NamespaceKind, NamespacePlan, shown as shown_namespaces};
pub use plan::plan;
pub use pod::attachment::attachment;
pub use pod::files::{FilesPlan, HostNames, Shm, names_resolved};
pub use pod::ports::plan as host_ports;
pub use pod::sysctls::{is_in_user_namespace, sysctl_path};
pub use pod::{
    NetworkPlan, PodPlan, cgroup, cgroup_parent, check as check_pod, last_cgroup, namespaces_of,
    plan as plan_pod, update as update_pod,
};
pub use privilege::can_make_interfaces;
pub use refusal::Refusal;
pub use refuse::{container as check, privilege as check_privilege};
pub use request::{
    CgroupPlaces, HostFacts, Layers, MountSource, Pins, Places, Request, SecurityModules, Switch, Unread,
};
pub use saved_spec::{Identity, from_saved, kept, saved_hooks, to_saved};
pub use seccomp::{Filters, fill as fill_seccomp};
pub use selinux::{Labelling, Labels, Selinux};
pub use unsupported::refuse_resources;
pub use user_namespace::of as user_namespace;
