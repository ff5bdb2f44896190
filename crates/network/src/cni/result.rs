//! The output of plugins: results and errors.

use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::is_version;
use crate::INTERFACE;
use crate::link::Address;

/// The most addresses of one pod; more are a mistake.
pub(super) const ADDRESS_LIMIT: usize = 64;

/// The part of a result that wharf uses.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AddResult {
    cni_version: Option<String>,
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
    /// Before 0.3.0 there is at most one address of each family.
    ip4: Option<OldIp>,
    ip6: Option<OldIp>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
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

#[derive(Deserialize)]
struct OldIp {
    /// With prefix length.
    ip: String,
}

/// The error that a failing plugin prints.
#[derive(Debug, Deserialize)]
pub(crate) struct Failure {
    pub(crate) code: u64,
    #[serde(default)]
    pub(crate) msg: String,
    #[serde(default)]
    pub(crate) details: String,
}

/// Parses a result of ADD, and sets its version to the chain's, as the next plugin and DEL need it.
pub(crate) fn parse(stdout: &[u8], version: &str) -> Result<Value, String> {
    let mut value: Value = serde_json::from_slice(stdout).map_err(|error| error.to_string())?;
    let result: AddResult = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    match result.cni_version {
        Some(found) if !is_version(&found) => Err(format!("its version is {found:?}")),
        Some(found) if found != version => {
            convert(&mut value, version);
            Ok(value)
        }
        _ => Ok(value),
    }
}

/// From 0.3.0 on, versions differ in one point: up to 0.4.0 an address names its family.
fn convert(result: &mut Value, version: &str) {
    result["cniVersion"] = version.into();
    for ip in result["ips"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        if version.starts_with("0.") {
            let ipv6 = ip.get("address").and_then(Value::as_str).is_some_and(|address| address.contains(':'));
            ip.insert("version".to_owned(), json!(if ipv6 { "6" } else { "4" }));
        } else {
            ip.remove("version");
        }
    }
}

/// A result with these addresses of the pod's interface, in the version of the chain.
pub(super) fn made_of(addresses: &[Address], version: &str, sandbox: &Path) -> Value {
    let ips: Vec<Value> = addresses
        .iter()
        .map(|Address { ip, prefix }| json!({ "address": format!("{ip}/{prefix}"), "interface": 0 }))
        .collect();
    let mut result = json!({ "interfaces": [{ "name": INTERFACE, "sandbox": sandbox }], "ips": ips });
    convert(&mut result, version);
    result
}

/// The addresses of the pod's interface in a result, in the plugin's order. Addresses of other interfaces that a chain
/// may add do not count. An address that names no interface belongs to the requested one.
pub(crate) fn addresses(result: &Value) -> Result<Vec<IpAddr>, String> {
    let result: AddResult = serde_json::from_value(result.clone()).map_err(|error| error.to_string())?;
    let of_pod = |ip: &&Ip| {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        interface.is_none_or(|interface| !interface.sandbox.is_empty() && interface.name == INTERFACE)
    };
    let old = [&result.ip4, &result.ip6].into_iter().flatten().map(|ip| ip.ip.as_str());
    let texts = result.ips.iter().filter(of_pod).map(|ip| ip.address.as_str()).chain(old);
    let address = |text: &str| {
        let address = text.split_once('/').map_or(text, |(address, _prefix)| address);
        address.parse().map_err(|_bad| format!("{text:?} is not an address"))
    };
    let ips = texts.map(address).collect::<Result<Vec<IpAddr>, String>>()?;
    if ips.is_empty() || ips.len() > ADDRESS_LIMIT {
        return Err(format!("it has {} addresses for the pod's {INTERFACE}", ips.len()));
    }
    Ok(ips)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_pod() {
        let result = parse(
            br#"{"cniVersion":"1.0.0","interfaces":[{"name":"br"},{"name":"net1","sandbox":"/x"},
                {"name":"eth0","sandbox":"/x"}],
                "ips":[{"address":"10.7.0.2/24","interface":1},{"address":"10.0.0.1/24","interface":0},
                {"address":"10.0.0.2/24","interface":2},{"address":"fd00::2/64"}],"dns":{}}"#,
            "1.0.0",
        )
        .unwrap();
        let want: [IpAddr; 2] = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(addresses(&result).unwrap(), want);
        let old = parse(br#"{"ip4":{"ip":"10.0.0.2/24"},"ip6":{"ip":"fd00::2/64"}}"#, "0.1.0").unwrap();
        assert_eq!(addresses(&old).unwrap(), want);
    }

    #[test]
    fn a_result_is_handed_on_in_the_version_of_the_list() {
        let new =
            r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"},{"address":"fd00::2/64"}],"x":1}"#;
        let old = parse(new.as_bytes(), "0.4.0").unwrap();
        let want = json!({ "cniVersion": "0.4.0", "x": 1, "ips": [
            { "address": "10.0.0.2/24", "version": "4" }, { "address": "fd00::2/64", "version": "6" },
        ] });
        assert_eq!(old, want);
        assert_eq!(
            parse(old.to_string().as_bytes(), "1.0.0").unwrap(),
            serde_json::from_str::<Value>(new).unwrap()
        );
    }

    #[test]
    fn unusable_results_are_refused() {
        for bad in ["", "[]", "7", r#"{"cniVersion":"9.0.0"}"#, r#"{"ips":7}"#, r#"{"ips":[{}]}"#] {
            assert!(parse(bad.as_bytes(), "1.0.0").is_err(), "{bad}");
        }
        for bad in [r#"{}"#, r#"{"ips":[]}"#, r#"{"ips":[{"address":"x/24"}]}"#] {
            assert!(addresses(&parse(bad.as_bytes(), "1.0.0").unwrap()).is_err(), "{bad}");
        }
    }
}
