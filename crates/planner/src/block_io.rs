//! The share and the rates of reads and writes.
//!
//! The CRI has no fields for them. They come from NRI plugins, by way of the runtime spec.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice, LinuxWeightDevice};
use wharf_cgroup::{BlockDevice, Io, Rate};

use crate::Refusal;

const FIELD: &str = "linux.resources.blockIO";

/// The cgroup's limits.
///
/// # Errors
/// [`Refusal`] for weights of leaves, which no kernel since Linux 5.0 has, and for numbers that no device has.
pub(crate) fn limits(asked: Option<&LinuxBlockIo>) -> Result<Io, Refusal> {
    let Some(asked) = asked else { return Ok(Io::default()) };
    let weights = asked.weight_device().iter().flatten();
    if asked.leaf_weight().is_some() || weights.clone().any(|of| of.leaf_weight().is_some()) {
        return Err(Refusal::spec(FIELD, "leaf weights were removed in Linux 5.0: leave leafWeight out"));
    }
    let rates = [
        (Rate::ReadBytes, asked.throttle_read_bps_device()),
        (Rate::WriteBytes, asked.throttle_write_bps_device()),
        (Rate::Reads, asked.throttle_read_iops_device()),
        (Rate::Writes, asked.throttle_write_iops_device()),
    ];
    let rates =
        rates.into_iter().flat_map(|(rate, devices)| devices.iter().flatten().map(move |of| (rate, of)));
    Ok(Io {
        weight: asked.weight(),
        weights: weights.filter_map(weight).collect::<Result<_, _>>()?,
        rates: rates.map(|(rate, of)| limit(rate, of)).collect::<Result<_, _>>()?,
    })
}

fn weight(of: &LinuxWeightDevice) -> Option<Result<(BlockDevice, u16), Refusal>> {
    let weight = of.weight()?;
    Some(device(of.major(), of.minor()).map(|device| (device, weight)))
}

fn limit(rate: Rate, of: &LinuxThrottleDevice) -> Result<(BlockDevice, Rate, u64), Refusal> {
    device(of.major(), of.minor()).map(|device| (device, rate, of.rate()))
}

fn device(major: i64, minor: i64) -> Result<BlockDevice, Refusal> {
    let number = |number: i64| {
        u32::try_from(number)
            .map_err(|_range| Refusal::spec(FIELD, format!("{number} is not a device number")))
    };
    Ok(BlockDevice { major: number(major)?, minor: number(minor)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits_of(json: &str) -> Result<Io, Refusal> {
        limits(Some(&serde_json::from_str(json).unwrap()))
    }

    #[test]
    fn what_the_spec_says_is_what_the_cgroup_gets() {
        let json = r#"{
            "weight": 500,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 100}, {"major": 8, "minor": 1}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}],
            "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 2}],
            "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 3}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 4}]
        }"#;
        let device = BlockDevice { major: 8, minor: 0 };
        let rates = [Rate::ReadBytes, Rate::WriteBytes, Rate::Reads, Rate::Writes].into_iter().zip(1..);
        let rates = rates.map(|(rate, limit)| (device, rate, limit)).collect();
        assert_eq!(limits_of(json), Ok(Io { weight: Some(500), weights: vec![(device, 100)], rates }));
        assert_eq!(limits(None), Ok(Io::default()));
    }

    #[test]
    fn what_no_cgroup_has_is_refused() {
        for (json, words) in [
            (r#"{"leafWeight": 10}"#, "leafWeight"),
            (r#"{"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 10}]}"#, "leafWeight"),
            (r#"{"weightDevice": [{"major": -8, "minor": 0, "weight": 10}]}"#, "-8 is not a device number"),
            (
                r#"{"throttleReadBpsDevice": [{"major": 8, "minor": -1, "rate": 1}]}"#,
                "-1 is not a device number",
            ),
        ] {
            let refusal = limits_of(json).unwrap_err().to_string();
            assert!(refusal.contains(words), "{json}: {refusal}");
        }
    }
}
