//! What plugins print: results and errors.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::config::is_version;

/// More addresses than this of one pod are a mistake.
const ADDRESS_LIMIT: usize = 64;

/// The part of a result that wharf reads.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AddResult {
    cni_version: Option<String>,
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    /// The pod's namespace; empty for an interface of the host.
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    /// With prefix length.
    address: String,
    interface: Option<usize>,
}

/// What a plugin that failed prints.
#[derive(Debug, Deserialize)]
pub(crate) struct Failure {
    pub(crate) code: u64,
    #[serde(default)]
    pub(crate) msg: String,
    #[serde(default)]
    pub(crate) details: String,
}

/// Reads a result of ADD; it is handed on as it came.
pub(crate) fn parse(stdout: &[u8]) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(stdout).map_err(|error| error.to_string())?;
    let result: AddResult = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    match result.cni_version {
        Some(version) if !is_version(&version) => Err(format!("its version is {version:?}")),
        _ => Ok(value),
    }
}

/// The pod's addresses in a result, in the plugin's order.
pub(crate) fn addresses(result: &Value) -> Result<Vec<IpAddr>, String> {
    let result: AddResult = serde_json::from_value(result.clone()).map_err(|error| error.to_string())?;
    let mut ips = Vec::new();
    for ip in &result.ips {
        let of_host = ip.interface.and_then(|index| result.interfaces.get(index));
        if of_host.is_some_and(|interface| interface.sandbox.is_empty()) {
            continue;
        }
        let address = ip.address.split_once('/').map_or(ip.address.as_str(), |(address, _prefix)| address);
        ips.push(address.parse().map_err(|_bad| format!("{:?} is not an address", ip.address))?);
    }
    if ips.is_empty() || ips.len() > ADDRESS_LIMIT {
        return Err(format!("it has {} addresses for the pod", ips.len()));
    }
    Ok(ips)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_pod() {
        let result = parse(
            br#"{"cniVersion":"1.0.0","interfaces":[{"name":"br"},{"name":"eth0","sandbox":"/x"}],
                "ips":[{"address":"10.0.0.1/24","interface":0},{"address":"10.0.0.2/24","interface":1},
                {"address":"fd00::2/64"}],"dns":{}}"#,
        )
        .unwrap();
        let want: [IpAddr; 2] = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(addresses(&result).unwrap(), want);
    }

    #[test]
    fn unusable_results_are_refused() {
        for bad in ["", "[]", "7", r#"{"cniVersion":"9.0.0"}"#, r#"{"ips":7}"#, r#"{"ips":[{}]}"#] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        for bad in [r#"{}"#, r#"{"ips":[]}"#, r#"{"ips":[{"address":"x/24"}]}"#] {
            assert!(addresses(&parse(bad.as_bytes()).unwrap()).is_err(), "{bad}");
        }
    }
}
