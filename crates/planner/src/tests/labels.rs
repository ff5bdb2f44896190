//! What requests become on a node that gives SELinux labels.

use wharf_cri_api::v1::{Mount, NamespaceMode, SeLinuxOption};
use wharf_sys::mount::Propagation;

use super::Asked;
use super::requests::{Case, case, mount, privileged, users};
use crate::request::Switch;
use crate::selinux::Policy;

pub(crate) const CASES: &[Case] = &[
    case("selinux", "no options", labelled),
    case("selinux", "a level", |asked| {
        labelled(asked);
        asked.security().selinux_options =
            Some(SeLinuxOption { level: "s0:c7".to_owned(), ..SeLinuxOption::default() });
    }),
    case("selinux", "the pod's options", |asked| {
        labelled(asked);
        let context = asked.pod.linux.get_or_insert_default().security_context.get_or_insert_default();
        let [user, role, r#type, level] = ["user_u", "user_r", "user_t", "s0:c3"].map(str::to_owned);
        context.selinux_options = Some(SeLinuxOption { user, role, r#type, level });
    }),
    case("selinux", "an option that no label can have", |asked| {
        labelled(asked);
        asked.security().selinux_options =
            Some(SeLinuxOption { r#type: "container_t,ro".to_owned(), ..SeLinuxOption::default() });
    }),
    case("selinux", "a privileged container", |asked| {
        labelled(asked);
        privileged(asked);
    }),
    case("selinux", "a pod of the host's namespaces", |asked| {
        labelled(asked);
        let context = asked.pod.linux.get_or_insert_default().security_context.get_or_insert_default();
        let namespaces = context.namespace_options.get_or_insert_default();
        let host = NamespaceMode::Node.into();
        (namespaces.network, namespaces.ipc, namespaces.pid) = (host, host, host);
    }),
    case("selinux", "a user namespace", |asked| {
        labelled(asked);
        users(asked, 65_536);
    }),
    case("selinux", "a volume that is relabelled, and one that is not", |asked| {
        labelled(asked);
        relabel(asked, Switch::On);
        relabel(asked, Switch::Off);
    }),
    case("selinux", "a volume that would be relabelled, on a node without labels", |asked| {
        relabel(asked, Switch::On);
    }),
];

fn labelled(asked: &mut Asked) {
    let contexts =
        "process = system_u:system_r:container_t:s0\nfile = system_u:object_r:container_file_t:s0\n";
    asked.selinux = Some((Policy::parse(contexts).unwrap(), "s0:c1,c2".to_owned()));
}

fn relabel(asked: &mut Asked, wanted: Switch) {
    let selinux_relabel = wanted == Switch::On;
    let container_path = format!("/data-{}", asked.container.mounts.len());
    mount(asked, Mount { container_path, selinux_relabel, ..Mount::default() }, Propagation::Private);
}
