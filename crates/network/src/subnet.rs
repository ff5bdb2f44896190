//! Address ranges of pods: one subnet, or one of each family with the primary first.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The most addresses used of one subnet; a node has a few hundred pods.
const POOL_LIMIT: u32 = 1 << 20;

/// Why a text is not a valid range of pod addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address range for pods: {reason}")]
pub struct SubnetError {
    /// The text, shortened to 100 characters.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// A range of addresses; the bits after the prefix are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    base: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// The range with this prefix length around an address.
    pub(crate) fn new(address: IpAddr, prefix: u8) -> Self {
        Self { base: mask(address, prefix), prefix }
    }

    /// The prefix length in bits.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether these are IPv6 addresses.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.base.is_ipv6()
    }

    /// The address of the gateway: the first after the base.
    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        self.nth(1)
    }

    /// Whether the address is in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.is_ipv6() && mask(address, self.prefix) == self.base
    }

    /// Whether all addresses of another range are in this one.
    pub(crate) fn includes(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.base)
    }

    /// The address at an offset from the base.
    pub(crate) fn nth(&self, offset: u32) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from_bits(base.to_bits().wrapping_add(offset))),
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits().wrapping_add(offset.into()))),
        }
    }

    /// The offset of an address from the base; `None` outside the range or beyond 32 bits.
    pub(crate) fn offset(&self, address: IpAddr) -> Option<u32> {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => address.to_bits().checked_sub(base.to_bits()),
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                u32::try_from(address.to_bits().checked_sub(base.to_bits())?).ok()
            }
            _ => None,
        }
    }

    /// The offset of the last address that a pod may have; the first is 2. IPv4's broadcast address is excluded.
    fn last(&self) -> u32 {
        match self.base {
            IpAddr::V4(_) => (u32::MAX >> self.prefix).min(POOL_LIMIT) - 1,
            IpAddr::V6(_) => u32::try_from(u128::MAX >> self.prefix).unwrap_or(u32::MAX).min(POOL_LIMIT),
        }
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        parse(text).map_err(|reason| SubnetError { text: text.chars().take(100).collect(), reason })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// One subnet, or one of each family; the primary comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnets(Vec<Subnet>);

impl Subnets {
    /// The subnets, primary first.
    #[must_use]
    pub fn as_slice(&self) -> &[Subnet] {
        &self.0
    }

    /// Whether there is exactly one address of each subnet, in the same order.
    pub(crate) fn contain(&self, ips: &[IpAddr]) -> bool {
        ips.len() == self.0.len() && self.0.iter().zip(ips).all(|(subnet, ip)| subnet.contains(*ip))
    }

    /// The IPv4 subnet alone, if there is one.
    pub(crate) fn without_ipv6(&self) -> Option<Self> {
        let ipv4: Vec<Subnet> = self.0.iter().filter(|subnet| !subnet.is_ipv6()).copied().collect();
        (!ipv4.is_empty()).then_some(Self(ipv4))
    }

    /// The offset of the last address that exists in every subnet.
    pub(crate) fn last(&self) -> u32 {
        self.0.iter().map(Subnet::last).min().unwrap_or_default()
    }
}

impl FromStr for Subnets {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let subnets: Vec<Subnet> =
            text.split(',').map(|part| part.trim().parse()).collect::<Result<_, _>>()?;
        let mixed = matches!(subnets.as_slice(), [first, second] if first.is_ipv6() != second.is_ipv6());
        if subnets.len() == 1 || mixed {
            return Ok(Self(subnets));
        }
        let reason = "at most one range per address family is allowed";
        Err(SubnetError { text: text.chars().take(100).collect(), reason })
    }
}

impl fmt::Display for Subnets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, subnet) in self.0.iter().enumerate() {
            write!(f, "{}{subnet}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<Subnet, &'static str> {
    let (base, prefix) = text.split_once('/').ok_or("a prefix length is missing")?;
    let base: IpAddr = base.parse().map_err(|_bad| "it does not begin with an address")?;
    let prefix: u8 = prefix.parse().map_err(|_bad| "its prefix length is not a number")?;
    let longest = if base.is_ipv4() { 30 } else { 126 };
    if !(8..=longest).contains(&prefix) {
        return Err("its prefix length must be 8 to 30 bits (IPv6: to 126)");
    }
    if base.is_loopback() || base.is_multicast() || base.is_unspecified() {
        return Err("pods cannot have these addresses");
    }
    Ok(Subnet::new(base, prefix))
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let host = u32::MAX.checked_shr(prefix.into()).unwrap_or_default();
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & !host))
        }
        IpAddr::V6(address) => {
            let host = u128::MAX.checked_shr(prefix.into()).unwrap_or_default();
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !host))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_masked_and_counted() {
        let subnet: Subnet = "10.88.7.9/29".parse().unwrap();
        assert_eq!(subnet.to_string(), "10.88.7.8/29");
        assert_eq!(subnet.gateway().to_string(), "10.88.7.9");
        assert_eq!((subnet.last(), subnet.nth(6).to_string()), (6, "10.88.7.14".to_owned()));
        assert!(subnet.contains("10.88.7.15".parse().unwrap()));
        assert!(!subnet.contains("10.88.7.16".parse().unwrap()));
        let parts = ["10.88.7.8/29", "10.88.7.12/30", "10.88.7.8/28", "10.88.7.16/30", "fd00::/64"];
        let is_part = parts.map(|part| subnet.includes(&part.parse().unwrap()));
        assert_eq!(is_part, [true, true, false, false, false]);
        let both: Subnets = "fd00::/64, 10.0.0.0/24".parse().unwrap();
        assert_eq!((both.to_string(), both.last()), ("fd00::/64,10.0.0.0/24".to_owned(), 254));
        assert_eq!("10.0.0.0/8".parse::<Subnets>().unwrap().last(), POOL_LIMIT - 1);
    }

    #[test]
    fn unusable_ranges_are_refused() {
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/31",
            "10.0.0.0/7",
            "fd00::/127",
            "x/24",
            "10.0.0.0/x",
            "127.0.0.0/8",
            "10.0.0.0/24,10.1.0.0/24",
            "10.0.0.0/24,fd00::/64,fd01::/64",
            "0.0.0.0/8",
            "224.0.0.0/8",
        ] {
            assert!(bad.parse::<Subnets>().is_err(), "{bad}");
        }
    }
}
