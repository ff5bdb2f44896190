//! The mounts of a spec: what the bundle has is bound from there by its number, and new file systems are the runtime's
//! to mount.

use wharf_isolation::{MountPlan, Plan, Runtime, Source};
use wharf_sys::mount::{Attributes, Depth};

use crate::json::{text, texts};

/// The mounts of a plan, with what the kernel shows of each that is in the bundle.
pub(crate) fn to_json(plan: &Plan, runtime: &Runtime, shown: &[Attributes]) -> String {
    let mounts = plan.mounts.iter().zip(shown).enumerate();
    let all: Vec<String> = mounts.map(|(number, (plan, shown))| one(number, plan, runtime, *shown)).collect();
    format!("[{}]", all.join(","))
}

fn one(number: usize, plan: &MountPlan, runtime: &Runtime, shown: Attributes) -> String {
    // A runtime gives restrictions to a bind by mounting it anew, and thereby lifts those of which it was not told.
    let attributes = plan.attributes.and(shown);
    let mut options: Vec<String> = attributes.options().map(str::to_owned).collect();
    let (kind, source) = match &plan.source {
        Source::Filesystem { kind, options: own } => {
            options.extend(own.iter().map(|(key, value)| match value.is_empty() {
                true => key.clone(),
                false => format!("{key}={value}"),
            }));
            (kind.as_str(), kind.clone())
        }
        source => {
            let (bind, depth) = match source {
                Source::Tree(_) => ("rbind", Depth::Recursive),
                _ => ("bind", Depth::One),
            };
            options.extend([bind, plan.propagation.option(depth)].map(str::to_owned));
            ("bind", format!("{}/{number}", runtime.bundle_directory))
        }
    };
    format!(
        r#"{{"destination":{},"type":{},"source":{},"options":{}}}"#,
        text(plan.target.as_str()),
        text(kind),
        text(&source),
        texts(&options)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_isolation::Ids;
    use wharf_sys::mount::Propagation;
    use wharf_types::{ContainerPath, HostPath};

    #[test]
    fn what_the_kernel_shows_is_told() {
        let host = |path: &str| HostPath::new(path).unwrap();
        let mount = |source, attributes| MountPlan {
            target: ContainerPath::new("/data").unwrap(),
            source,
            attributes,
            recursive_read_only: false,
            propagation: Propagation::Slave,
            ids: Ids::Hosts,
        };
        let runtime = Runtime {
            program: host("/usr/sbin/runc"),
            options: Vec::new(),
            state_directory: host("/state"),
            bundle_directory: host("/bundle"),
            process: Vec::new(),
            sandbox: None,
        };
        let memory = Source::Filesystem {
            kind: "tmpfs".to_owned(),
            options: vec![("mode".to_owned(), "755".to_owned()), ("flag".to_owned(), String::new())],
        };
        let hosts = Attributes::NO_DEV.and(Attributes::NO_LINKS);
        for (source, asked, shown, expected) in [
            (
                Source::Tree(host("/srv")),
                Attributes::READ_ONLY,
                hosts,
                r#""type":"bind","source":"/bundle/3","options":["ro","nodev","nosymfollow","rbind","rslave"]"#,
            ),
            (
                Source::Single(host("/srv")),
                Attributes::NONE,
                Attributes::NONE,
                r#""type":"bind","source":"/bundle/3","options":["bind","slave"]"#,
            ),
            (
                memory,
                Attributes::NO_EXEC,
                Attributes::NONE,
                r#""type":"tmpfs","source":"tmpfs","options":["noexec","mode=755","flag"]"#,
            ),
        ] {
            let told = one(3, &mount(source, asked), &runtime, shown);
            assert_eq!(told, format!(r#"{{"destination":"/data",{expected}}}"#));
        }
    }
}
