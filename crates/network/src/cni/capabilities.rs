//! CNI's capabilities: what plugins learn about a pod if they ask for it, under the same names as in other runtimes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::CniError;
use crate::Attachment;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// The bandwidths that Kubernetes accepts, in bits per second; any other is a mistake.
const REASONABLE: std::ops::RangeInclusive<u128> = 1000..=1_000_000_000_000_000;
/// The burst, in bits: as much as the field can hold.
const BURST: u32 = u32::MAX;

/// All capabilities of a pod except its ports.
pub(super) fn of(pod: &Attachment<'_>) -> Result<Map<String, Value>, CniError> {
    let mut all = Map::new();
    let mut bandwidth = Map::new();
    for (annotation, direction) in [(INGRESS, "ingress"), (EGRESS, "egress")] {
        if let Some(rate) = rate(pod.annotations, annotation)? {
            bandwidth.insert(format!("{direction}Rate"), rate.into());
            bandwidth.insert(format!("{direction}Burst"), BURST.into());
        }
    }
    let dns = pod.dns;
    let dns = json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options });
    let annotations: Map<String, Value> =
        pod.annotations.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    let has_dns = !(pod.dns.servers.is_empty() && pod.dns.searches.is_empty() && pod.dns.options.is_empty());
    for (there, name, value) in [
        (!bandwidth.is_empty(), "bandwidth", Value::from(bandwidth)),
        (has_dns, "dns", dns),
        (!pod.cgroup_parent.is_empty(), "cgroupPath", pod.cgroup_parent.into()),
        (!annotations.is_empty(), "io.kubernetes.cri.pod-annotations", annotations.into()),
    ] {
        if there {
            all.insert(name.to_owned(), value);
        }
    }
    Ok(all)
}

fn rate(annotations: &BTreeMap<String, String>, name: &'static str) -> Result<Option<u64>, CniError> {
    let Some(text) = annotations.get(name) else { return Ok(None) };
    let bits = quantity(text).filter(|bits| REASONABLE.contains(bits)).and_then(|bits| bits.try_into().ok());
    let refused = || CniError::Bandwidth { annotation: name, value: text.chars().take(100).collect() };
    bits.map(Some).ok_or_else(refused)
}

/// A quantity as Kubernetes writes it, such as 10M, 1.5Gi or 2e6, rounded up.
fn quantity(text: &str) -> Option<u128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    let factor = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u128.pow(2),
        "G" => 1000_u128.pow(3),
        "T" => 1000_u128.pow(4),
        "P" => 1000_u128.pow(5),
        "Ki" => 1024,
        "Mi" => 1024_u128.pow(2),
        "Gi" => 1024_u128.pow(3),
        "Ti" => 1024_u128.pow(4),
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            10_u128.checked_pow(power.min(20))?
        }
    };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    Some((digits.parse::<u128>().ok()? * factor).div_ceil(scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, bits) in [
            ("10M", 10_000_000),
            ("1500", 1500),
            ("1.5k", 1500),
            ("2Ki", 2048),
            ("2e6", 2_000_000),
            (".5k", 500),
        ] {
            assert_eq!(quantity(text), Some(bits), "{text}");
        }
        for bad in ["", "M", "10MB", "-1", "1.2.3", "ten", "1e", "1e-3", "1m", &"9".repeat(30)] {
            assert_eq!(quantity(bad), None, "{bad}");
        }
    }
}
