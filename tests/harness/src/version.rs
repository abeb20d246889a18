use std::fmt;
use std::str::FromStr;

use crate::error::HarnessError;

/// A release of Apache Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
    pub patch: u16,
}

impl Version {
    /// KRaft is ready for production since 3.3 (KIP-833); what is older runs with ZooKeeper.
    pub(crate) fn uses_zookeeper(self) -> bool {
        (self.major, self.minor) < (3, 3)
    }

    /// Share groups (KIP-932) bring an internal topic of their own.
    pub(crate) fn has_share_groups(self) -> bool {
        self.major >= 4
    }
}

impl FromStr for Version {
    type Err = HarnessError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Option<Vec<u16>> = text.split('.').map(parse_digits).collect();
        match parts.as_deref() {
            Some(&[major, minor, patch]) => Ok(Self { major, minor, patch }),
            _ => Err(HarnessError::Version(text.to_owned())),
        }
    }
}

/// `u16::from_str` would take a sign too; the text becomes a file name and an XML value.
fn parse_digits(part: &str) -> Option<u16> {
    if part.bytes().all(|b| b.is_ascii_digit()) { part.parse().ok() } else { None }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn only_three_numbers_are_a_version() {
        let version: Version = "3.9.2".parse().unwrap();
        assert_eq!(version, Version { major: 3, minor: 9, patch: 2 });
        assert_eq!(version.to_string(), "3.9.2");
        for wrong in ["", "3.9", "3.9.2.1", "3.9.x", "3.+9.2", "../3.9", "3.9.99999", "3..2"] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn zookeeper_before_3_3() {
        assert!("2.8.2".parse::<Version>().unwrap().uses_zookeeper());
        assert!(!"3.4.1".parse::<Version>().unwrap().uses_zookeeper());
    }
}
