//! MAC addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

/// Says why a text is no MAC address that a guest can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MacAddrError {
    /// It is not six hexadecimal bytes.
    #[error("{0:?} is not a MAC address: write six hexadecimal bytes such as 52:54:00:12:34:56")]
    Malformed(String),
    /// It names a group.
    #[error("{0} is a multicast address: the lowest bit of the first byte must be 0")]
    Multicast(String),
}

impl MacAddr {
    /// Makes a locally administered unicast address of six random bytes.
    ///
    /// Source of the two bits: IEEE 802-2014, section 8.2.
    pub fn from_random(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & 0b1111_1100) | 0b0000_0010;
        MacAddr(bytes)
    }

    /// Length of the prefix of [`MacAddr::link_local`], in bits.
    pub const LINK_LOCAL_PREFIX: u8 = 16;

    /// Returns the IPv4 address that an interface of this address has where nobody gives it one: 169.254.1.0 to 169.254.254.255
    /// (RFC 3927, section 2.1), always the same. Of many interfaces two may have the same one; nobody asks before it is taken.
    pub fn link_local(self) -> Ipv4Addr {
        // Fowler, Noll and Vo's hash, so that neighbouring addresses are apart.
        let hash = self.0.iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        let number = (hash % (254 * 256)) as u16;
        let [high, low] = number.to_be_bytes();
        Ipv4Addr::new(169, 254, 1 + high, low)
    }

    /// Returns the six bytes in transmission order.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || MacAddrError::Malformed(text.to_owned());
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .ok_or_else(malformed)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        if bytes[0] & 1 == 1 {
            return Err(MacAddrError::Multicast(text.to_owned()));
        }
        Ok(MacAddr(bytes))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = MacAddrError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_addresses_are_local_and_unicast() {
        for first in 0..=255 {
            let mac = MacAddr::from_random([first, 1, 2, 3, 4, 5]);
            assert_eq!(mac.octets()[0] & 0b11, 0b10);
            assert_eq!(mac.to_string().parse(), Ok(mac));
        }
    }

    #[test]
    fn link_local_addresses_are_in_their_range_and_spread() {
        let addresses: std::collections::BTreeSet<_> = (0..=255)
            .map(|last| MacAddr::from_random([0x52, 0x54, 0, 0, 0, last]).link_local())
            .collect();
        assert!(addresses.len() > 250, "{}", addresses.len());
        for address in addresses {
            let [a, b, c, _] = address.octets();
            assert!((a, b) == (169, 254) && (1..=254).contains(&c), "{address}");
        }
    }

    #[test]
    fn refuses_what_is_none() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:0:12:34:56",
            "52-54-00-12-34-56",
            "+2:54:00:12:34:56",
            "52:54:00:12:34:5g",
        ] {
            assert!(
                matches!(text.parse::<MacAddr>(), Err(MacAddrError::Malformed(_))),
                "{text}"
            );
        }
        assert!(matches!(
            "01:00:5e:00:00:01".parse::<MacAddr>(),
            Err(MacAddrError::Multicast(_))
        ));
    }
}
