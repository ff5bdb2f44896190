//! The conversion of v1's cpu.shares to v2's cpu.weight.

const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;
const WEIGHT_MAX: u64 = 10_000;

/// The v2 weight (1 to 10,000) for v1 shares (2 to 262,144; clamped).
///
/// The curve is quadratic in the logarithms and goes through (2, 1), (1024, 100) and (262144, 10000), so that the
/// default shares give the default weight. Other runtimes adopted the same curve in 2025, so a node may mix them.
#[must_use]
pub fn weight_of_shares(shares: u64) -> u64 {
    if shares <= SHARES_MIN {
        return 1;
    }
    if shares >= SHARES_MAX {
        return WEIGHT_MAX;
    }
    let logarithm = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
    let exponent = (logarithm * logarithm + 125.0 * logarithm) / 612.0 - 7.0 / 34.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the exponent lies between 0 and 4, so the power lies between 1 and 10,000"
    )]
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight.clamp(1, WEIGHT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_weights() {
        for (shares, weight) in
            [(0, 1), (1, 1), (2, 1), (102, 17), (512, 59), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)]
        {
            assert_eq!(weight_of_shares(shares), weight, "{shares} shares");
        }
    }

    #[test]
    fn more_shares_never_weigh_less() {
        let weights: Vec<u64> = (2..=SHARES_MAX).step_by(37).map(weight_of_shares).collect();
        assert!(weights.is_sorted());
    }
}
