//! Files that the runtime gives a pod's containers: hostname, hosts, resolv.conf.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use wharf_cri_api::v1::DnsConfig;
use wharf_types::Field;

use crate::error::{Error, Stage};

const STAGE: &str = "writing the pod's files";

/// Writes the three files into the pod's directory. Without DNS settings the host's own are copied.
pub(crate) fn write(directory: &Path, hostname: &str, dns: Option<&DnsConfig>) -> Result<(), Error> {
    fs::write(directory.join("hostname"), format!("{hostname}\n")).stage(STAGE)?;
    fs::write(directory.join("hosts"), hosts(hostname)).stage(STAGE)?;
    let resolv = match dns {
        Some(dns) => resolv_conf(dns)?,
        None => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    fs::write(directory.join("resolv.conf"), resolv).stage(STAGE)
}

fn hosts(hostname: &str) -> String {
    let name = if hostname.is_empty() { String::new() } else { format!("127.0.1.1\t{hostname}\n") };
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{name}")
}

fn resolv_conf(dns: &DnsConfig) -> Result<String, Error> {
    let mut text = String::new();
    let mut line = |keyword: &str, values: &[String]| {
        for value in values {
            // One value must not become two lines; colons are part of IPv6 servers and of options.
            if Field::new(&value.replace(':', "")).is_none() {
                return Err(Error::invalid(
                    "dns_config",
                    format!("{value:?} has a line break or is too long"),
                ));
            }
        }
        if !values.is_empty() {
            writeln!(text, "{keyword} {}", values.join(" ")).stage(STAGE)?;
        }
        Ok(())
    };
    line("search", &dns.searches)?;
    for server in &dns.servers {
        line("nameserver", std::slice::from_ref(server))?;
    }
    line("options", &dns.options)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_settings_become_lines() {
        let dns = DnsConfig {
            servers: vec!["10.10.10.10".into(), "fd00::1".into()],
            searches: vec!["google.com".into()],
            options: vec!["ndots:8".into()],
        };
        let want = "search google.com\nnameserver 10.10.10.10\nnameserver fd00::1\noptions ndots:8\n";
        assert_eq!(resolv_conf(&dns).unwrap(), want);
    }

    #[test]
    fn a_line_break_is_refused() {
        let dns = DnsConfig { servers: vec!["1.1.1.1\nnameserver 6.6.6.6".into()], ..DnsConfig::default() };
        assert!(resolv_conf(&dns).is_err());
    }
}
