//! Kernel settings for the built-in network, in the namespace of the calling thread.
//!
//! On the host, only what the network needs is changed, and nothing is changed back: others may rely on it by then.

use std::io::ErrorKind;

const NET: &str = "/proc/sys/net";

/// A setting that could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}")]
pub struct SysctlError {
    /// What was being done, with the path and the value.
    pub operation: String,
    /// The operating system's error.
    pub source: std::io::Error,
}

/// Proof that there is IPv6.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ipv6;

/// Whether IPv6 is compiled in and enabled.
pub(crate) fn has_ipv6() -> Result<bool, SysctlError> {
    Ok(read("ipv6/conf/all/disable_ipv6")?.is_some_and(|value| value == "0"))
}

/// Whether the kernel has IPv6, even if it is disabled.
pub(crate) fn knows_ipv6() -> Result<bool, SysctlError> {
    let path = format!("{NET}/ipv6");
    std::fs::exists(&path).map_err(|source| SysctlError { operation: format!("look for {path}"), source })
}

/// Switches IPv6 on for a pod's interface.
pub(crate) fn allow_ipv6(interface: &str) -> Result<(), SysctlError> {
    write(&format!("ipv6/conf/{interface}/disable_ipv6"), "0")
}

/// Settings for the interface that a pod is about to get in a bridge. The pod believes neither that a neighbouring pod
/// is a router (CVE-2020-10749), nor that the router redirects it, and it can use an IPv6 address at once.
pub(crate) fn prepare_pod() -> Result<(), SysctlError> {
    for (name, value) in [
        // For IPv4, an interface follows its own setting or that of all.
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv6/conf/default/accept_redirects", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
    ] {
        match write(name, value) {
            Err(error) if error.source.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Has a bridge route 127.0.0.0/8, as host ports on 127.0.0.1 need. The rules keep the pods out of the host's services
/// there, but are gone whenever somebody flushes the ruleset: so this waits for the first such port.
pub(crate) fn route_loopback(bridge: &str) -> Result<(), SysctlError> {
    write(&format!("ipv4/conf/{bridge}/route_localnet"), "1")
}

/// Settings for the bridge. The host does not believe that a pod is a router or knows a better one, or is somebody
/// elsewhere, not even while somebody has flushed the rules.
pub(crate) fn prepare_bridge(name: &str) -> Result<(), SysctlError> {
    write(&format!("ipv4/conf/{name}/rp_filter"), "1")?;
    write(&format!("ipv4/conf/{name}/accept_redirects"), "0")?;
    if has_ipv6()? {
        write(&format!("ipv6/conf/{name}/accept_redirects"), "0")?;
        write(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        write(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
    }
    Ok(())
}

/// Has the host answer on a bridge, at once, for addresses behind other links.
pub(crate) fn answer_for_others(bridge: &str) -> Result<(), SysctlError> {
    write(&format!("ipv4/neigh/{bridge}/proxy_delay"), "0")?;
    write(&format!("ipv4/conf/{bridge}/proxy_arp"), "1")?;
    if has_ipv6()? {
        write(&format!("ipv6/neigh/{bridge}/proxy_delay"), "0")?;
        write(&format!("ipv6/conf/{bridge}/proxy_ndp"), "1")?;
    }
    Ok(())
}

/// Lets the machine forward packets, as it must between pods and the world.
pub(crate) fn forward(ipv6: Option<Ipv6>) -> Result<(), SysctlError> {
    if read("ipv4/ip_forward")?.is_some_and(|value| value != "1") {
        write("ipv4/ip_forward", "1")?;
    }
    if ipv6.is_some() && read("ipv6/conf/all/forwarding")?.is_some_and(|value| value != "1") {
        keep_router_advertisements()?;
        write("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// A machine that forwards stops listening to router advertisements, and would lose its own IPv6 address and route. The
/// value 2 makes it listen all the same; it is set only for interfaces that listened before.
fn keep_router_advertisements() -> Result<(), SysctlError> {
    let fail = |source| SysctlError { operation: format!("list {NET}/ipv6/conf"), source };
    for entry in std::fs::read_dir(format!("{NET}/ipv6/conf")).map_err(fail)? {
        let interface = entry.map_err(fail)?.file_name().to_string_lossy().into_owned();
        let name = format!("ipv6/conf/{interface}/accept_ra");
        if !["all", "default", "lo"].contains(&interface.as_str()) && read(&name)?.as_deref() == Some("1") {
            write(&name, "2")?;
        }
    }
    Ok(())
}

/// The value of a setting; `None` if the kernel does not have it.
fn read(name: &str) -> Result<Option<String>, SysctlError> {
    let path = format!("{NET}/{name}");
    match std::fs::read_to_string(&path) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysctlError { operation: format!("read {path}"), source }),
    }
}

fn write(name: &str, value: &str) -> Result<(), SysctlError> {
    let path = format!("{NET}/{name}");
    std::fs::write(&path, value)
        .map_err(|source| SysctlError { operation: format!("set {path} to {value}"), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_is_not_there_is_named() {
        let error = prepare_bridge("none/such").unwrap_err();
        assert_eq!(error.to_string(), "cannot set /proc/sys/net/ipv4/conf/none/such/rp_filter to 1");
        assert!(prepare_bridge("nosuchbridge").is_err());
        assert_eq!(read("none/such").unwrap(), None);
        let error = read("ipv4/conf").unwrap_err();
        assert_eq!(error.to_string(), "cannot read /proc/sys/net/ipv4/conf", "it is a directory");
    }
}
