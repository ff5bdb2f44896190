//! Checks of what pods on wharfd's network need of the machine: that it forwards packets, and does not drop them.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::mend::CommandLine;
use super::{Check, bounded, source};
use crate::{listener, regular};

const FORWARDING: &str = "forwarding";
const IPTABLES: &str = "iptables";

/// What the pods on wharfd's network have leases of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Leased {
    Nothing,
    Ipv4,
    /// IPv6 addresses as well, at least one pod.
    Ipv6,
}

/// The checks of the network namespace that wharfd is in, as far as they can be made from this one.
pub(super) fn checks(leases: &Path, wharfd: Option<i32>) -> Vec<Check> {
    if let Some(pid) = wharfd.filter(|&pid| listener::shares(pid, "net") == Some(false)) {
        let advice = format!("check it from there: nsenter --net=/proc/{pid}/ns/net wharf doctor");
        return vec![Check::warn(
            "forwarding, iptables",
            "unknown: wharfd is in another network namespace",
            advice,
        )];
    }
    let leases = bounded::read(leases, |leases| leased(leases).ok());
    let iptables = if nix::unistd::geteuid().is_root() {
        source::check_if_any(IPTABLES, "/proc/net/ip_tables_names", |tables| {
            let list = CommandLine::new("iptables-legacy -S FORWARD");
            legacy_iptables(tables, leases, || list.execute(Duration::from_secs(3)))
        })
    } else {
        Check::warn(IPTABLES, "cannot be seen without root", "use sudo")
    };
    let forwarding = source::check(FORWARDING, "/proc/sys/net/ipv4/ip_forward", |ipv4| {
        source::check_if_any(FORWARDING, "/proc/sys/net/ipv6/conf/all/forwarding", |ipv6| {
            forwarding(ipv4.trim(), ipv6.trim(), leases)
        })
    });
    vec![forwarding, iptables]
}

fn leased(leases: &Path) -> io::Result<Leased> {
    /// More than a lease has.
    const LIMIT_BYTES: u64 = 1 << 20;
    let mut most = Leased::Nothing;
    for name in source::names(leases)? {
        // It may have been freed since.
        let record = source::if_any(regular::read(&leases.join(name), LIMIT_BYTES))?;
        most = most.max(addresses(&record));
    }
    Ok(most)
}

/// Of a lease's record, which is JSON behind a header line.
fn addresses(record: &[u8]) -> Leased {
    let content = record.iter().position(|&byte| byte == b'\n').map_or(record, |end| &record[end..]);
    let lease: serde_json::Value = serde_json::from_slice(content).unwrap_or_default();
    let mut ips = lease["ips"].as_array().into_iter().flatten().filter_map(|ip| ip.as_str());
    if ips.any(|ip| ip.contains(':')) { Leased::Ipv6 } else { Leased::Ipv4 }
}

/// wharfd turns forwarding on for the first pod on its network, and whoever turns it off later is not wharfd. What the
/// leases are may be unknown. `ipv6` is empty if the kernel has no IPv6.
fn forwarding(ipv4: &str, ipv6: &str, leases: Option<Leased>) -> Check {
    const WHAT: &str = FORWARDING;
    match (ipv4, ipv6, leases) {
        ("1", "1", _) | ("1", "", None) | ("1", _, Some(Leased::Nothing | Leased::Ipv4)) => {
            Check::ok(WHAT, "on")
        }
        (_, _, None) => {
            let advice = "pods on it need forwarding: use sudo to see them";
            let off = if ipv4 == "1" { "off for IPv6" } else { "off" };
            Check::warn(WHAT, format!("{off}; unknown whether there are pods on wharfd's network"), advice)
        }
        (_, _, Some(Leased::Nothing)) => {
            Check::ok(WHAT, "off; wharfd turns it on for the first pod on its network")
        }
        // The machine may need router advertisements, which wharfd has it keep when it turns this on.
        ("1", _, Some(Leased::Ipv6)) => {
            let advice = "something else turned it off, so pods cannot reach other machines by IPv6: check /etc/sysctl.d, and \
                          restart wharfd, which turns it on";
            Check::warn(WHAT, "off for IPv6, although wharfd has turned it on for pods", advice)
        }
        _ => {
            let advice = "something else turned it off, so pods cannot reach other machines: check /etc/sysctl.d, and turn it on";
            let on = CommandLine::new("sysctl -w net.ipv4.ip_forward=1");
            Check::warn(WHAT, "off, although wharfd has turned it on for pods", advice).mended_by(vec![on])
        }
    }
}

/// The tables of iptables that are not in nf_tables, where wharf puts its own rules beside those of others. They belong
/// to somebody else, who decides what they let through. `chain` has the rules of FORWARD there, or why they are
/// unknown.
fn legacy_iptables(
    tables: &str,
    pods: Option<Leased>,
    chain: impl FnOnce() -> Result<String, String>,
) -> Check {
    const WHAT: &str = IPTABLES;
    if !tables.lines().any(|table| table == "filter") {
        return Check::ok(WHAT, "no tables of iptables-legacy");
    }
    let found = match chain() {
        Ok(chain) if chain.lines().eq(["-P FORWARD ACCEPT"]) => {
            return Check::ok(WHAT, "the FORWARD chain of iptables-legacy has no rules, and accepts");
        }
        Ok(chain) if chain.lines().any(|line| line == "-P FORWARD DROP") => {
            "the policy of iptables-legacy drops what is forwarded".to_owned()
        }
        Ok(_) => "iptables-legacy filters packets".to_owned(),
        Err(why) => format!("iptables-legacy filters packets, and its rules are unknown: {why}"),
    };
    let advice = match pods {
        Some(Leased::Ipv4 | Leased::Ipv6) => {
            "if its FORWARD chain drops packets (iptables-legacy -S FORWARD), pods on wharfd's network cannot reach anything \
             until you add -I FORWARD -i wh+ -j ACCEPT, and -I FORWARD -o wh+ -m conntrack --ctstate \
             RELATED,ESTABLISHED,DNAT -j ACCEPT; or move its rules to iptables-nft"
        }
        Some(Leased::Nothing) => {
            "no pod is on wharfd's network; those of a CNI plugin reach others only if that plugin lets them through"
        }
        None => "unknown whether there are pods on wharfd's network: use sudo to see them",
    };
    Check::warn(WHAT, found, advice)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::super::mend::Remedy;
    use super::*;

    #[test]
    fn a_network_that_is_not_wharfds_is_not_checked() {
        let names = |wharfd| -> Vec<_> {
            checks(Path::new("/no/leases"), wharfd).iter().map(|check| check.what).collect()
        };
        let process = i32::try_from(std::process::id()).unwrap();
        assert_eq!([names(Some(process)), names(None)], [["forwarding", "iptables"]; 2]);
        let elsewhere = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
            names(Some(process))
        };
        let names = std::thread::scope(|scope| scope.spawn(elsewhere).join()).unwrap();
        assert_eq!(names, ["forwarding, iptables"]);
    }

    #[test]
    fn forwarding_that_somebody_has_turned_off_is_reported() {
        use Leased::{Ipv4, Ipv6, Nothing};
        use Verdict::{Ok, Warn};
        for (ipv4, ipv6, leases, verdict) in [
            ("1", "0", Some(Ipv4), Ok),
            ("0", "0", Some(Nothing), Ok),
            ("0", "0", Some(Ipv4), Warn),
            ("0", "1", None, Warn),
            ("1", "0", None, Warn),
            ("1", "", None, Ok),
            ("1", "1", None, Ok),
            ("1", "1", Some(Ipv6), Ok),
            ("1", "0", Some(Ipv6), Warn),
        ] {
            assert_eq!(forwarding(ipv4, ipv6, leases).verdict, verdict, "{ipv4} {ipv6} {leases:?}");
        }
        let on = CommandLine::new("sysctl -w net.ipv4.ip_forward=1");
        assert_eq!(forwarding("0", "0", Some(Ipv4)).remedy, Remedy::Commands(vec![on]));
        assert_eq!(forwarding("0", "0", None).remedy, Remedy::Judgement);
        let of_ipv6 = forwarding("1", "0", Some(Ipv6));
        assert_eq!(of_ipv6.remedy, Remedy::Judgement, "wharfd keeps router advertisements");
        assert!(of_ipv6.advice.contains("restart wharfd"), "{of_ipv6:?}");
    }

    #[test]
    fn leases_say_what_they_are_of() {
        let dir = tempfile::tempdir().unwrap();
        let lease = |name: &str, ips: &str| {
            let content = format!("wharf lease 2 9 00000000\n{{\"ips\":[{ips}],\"ports\":[]}}");
            std::fs::write(dir.path().join(name), content).unwrap();
            leased(dir.path()).unwrap()
        };
        assert_eq!(leased(&dir.path().join("none")).unwrap(), Leased::Nothing);
        assert_eq!(lease("a", "\"10.88.0.2\""), Leased::Ipv4);
        assert_eq!(lease("b", "\"10.88.0.3\",\"fd00::3\""), Leased::Ipv6);
        assert_eq!(lease("c", "\"10.88.0.4\""), Leased::Ipv6);
    }

    #[test]
    fn tables_that_wharf_cannot_add_to_are_reported_and_left() {
        let told = |tables, pods, chain: &str| legacy_iptables(tables, pods, || Ok(chain.to_owned()));
        let pods = Some(Leased::Ipv4);
        for tables in ["", "nat\n"] {
            assert_eq!(told(tables, pods, "-P FORWARD DROP").verdict, Verdict::Ok);
        }
        let open = told("filter\n", pods, "-P FORWARD ACCEPT");
        assert!(open.verdict == Verdict::Ok && !open.found.contains("pods"), "{open:?}");
        for chain in ["-P FORWARD DROP", "-P FORWARD ACCEPT\n-A FORWARD -j DROP"] {
            for (pods, rules) in [(pods, true), (Some(Leased::Nothing), false), (None, false)] {
                let told = told("filter\n", pods, chain);
                assert_eq!((told.verdict, &told.remedy), (Verdict::Warn, &Remedy::Judgement), "{told:?}");
                assert_eq!(
                    told.advice.contains("-i wh+") && told.advice.contains("-o wh+"),
                    rules,
                    "{told:?}"
                );
                assert_eq!(told.advice.contains("CNI"), pods == Some(Leased::Nothing), "{told:?}");
            }
        }
        let unseen = legacy_iptables("nat\nfilter\n", pods, || Err("why".to_owned()));
        assert!(unseen.verdict == Verdict::Warn && unseen.found.ends_with(": why"), "{unseen:?}");
    }
}
