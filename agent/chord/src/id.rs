//! Points on the identifier circle: 160-bit SHA-1 values, or fewer bits in a playground.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

/// A point on the identifier circle, an unsigned number of 160 bits (most significant byte first).
///
/// Shown and read as 40 hexadecimal digits; reading accepts fewer and pads on the left.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 20]);

impl Id {
    /// The smallest point, 0.
    pub const MIN: Self = Self([0; 20]);
    /// The largest point, 2^160 - 1.
    pub const MAX: Self = Self([0xff; 20]);

    /// The point a key or an address hashes to (SHA-1, FIPS 180-4).
    pub fn hash(bytes: &[u8]) -> Self {
        Self(Sha1::digest(bytes).into())
    }

    /// A point from its bytes, most significant first.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// A small point, for playgrounds and tests.
    pub fn small(value: u64) -> Self {
        let mut bytes = [0; 20];
        bytes[12..].copy_from_slice(&value.to_be_bytes());
        Self(bytes)
    }

    /// The bytes, most significant first.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// `self + other` modulo 2^160.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let mut sum = [0; 20];
        let mut carry = 0u16;
        for i in (0..20).rev() {
            let digit = u16::from(self.0[i]) + u16::from(other.0[i]) + carry;
            sum[i] = digit as u8;
            carry = digit >> 8;
        }
        Self(sum)
    }

    /// The clockwise distance from `self` to `other`, modulo 2^160.
    #[must_use]
    pub fn distance_to(self, other: Self) -> Self {
        let mut difference = [0; 20];
        let mut borrow = 0i16;
        for i in (0..20).rev() {
            let mut digit = i16::from(other.0[i]) - i16::from(self.0[i]) - borrow;
            borrow = i16::from(digit < 0);
            if digit < 0 {
                digit += 256;
            }
            difference[i] = digit as u8;
        }
        Self(difference)
    }

    /// Half of this value, rounded down: with [`Self::distance_to`], the middle of an arc.
    #[must_use]
    pub fn half(self) -> Self {
        let mut result = [0; 20];
        let mut carry = 0;
        for (to, from) in result.iter_mut().zip(self.0) {
            *to = (from >> 1) | (carry << 7);
            carry = from & 1;
        }
        Self(result)
    }

    /// This value as a share of the whole circle, between 0 and 1.
    pub fn fraction(self) -> f64 {
        self.0.iter().rev().fold(0.0, |low, byte| (low + f64::from(*byte)) / 256.0)
    }

    /// Whether `self` lies in the open arc (from, to). The arc from a point to itself is the
    /// whole circle without that point, as in Zave's model of Chord.
    pub fn is_between(self, from: Self, to: Self) -> bool {
        let after = from < self;
        let before = self < to;
        if from < to { after && before } else { (after || before) && self != from && self != to }
    }

    /// Whether `self` lies in the half-open arc (from, to]; the whole circle if both are equal.
    pub fn is_in_arc(self, from: Self, to: Self) -> bool {
        self == to || self.is_between(from, to)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    /// The first eight digits, enough to tell nodes apart in a log; small points in full.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0[..12] == [0; 12] {
            let mut low = [0; 8];
            low.copy_from_slice(&self.0[12..]);
            return write!(f, "{}", u64::from_be_bytes(low));
        }
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a text is not a point on the circle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id is 1 to 40 hexadecimal digits, not `{0}`")]
pub struct InvalidId(String);

impl FromStr for Id {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId(text.to_owned());
        if text.is_empty() || text.len() > 40 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let padded = format!("{text:0>40}");
        let mut bytes = [0; 20];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&padded[2 * i..2 * i + 2], 16).map_err(|_| invalid())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            Ok(Self(<[u8; 20]>::deserialize(deserializer)?))
        }
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Id {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Id".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A point on the circle in hexadecimal digits; agents write all 40, in lower case.",
            "type": "string",
            "pattern": "^[0-9a-fA-F]{1,40}$",
        })
    }
}

/// The size of the identifier circle: 2^bits points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    bits: u8,
}

impl Space {
    /// The circle of SHA-1: 2^160 points.
    pub const SHA1: Self = Self { bits: 160 };

    /// A circle of 2^bits points, `bits` from 1 to 160.
    pub fn new(bits: u8) -> Option<Self> {
        (1..=160).contains(&bits).then_some(Self { bits })
    }

    /// The number of bits, which is also the number of fingers (SIGCOMM'01, section 4.3).
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// The point on this circle that `id` falls on: `id` modulo 2^bits.
    #[must_use]
    pub fn wrap(self, id: Id) -> Id {
        let mut bytes = id.0;
        let spare = 160 - usize::from(self.bits);
        bytes[..spare / 8].fill(0);
        if !spare.is_multiple_of(8) {
            bytes[spare / 8] &= 0xff >> (spare % 8);
        }
        Id(bytes)
    }

    /// Where finger `index` (from 0) of `id` starts: `id + 2^index` (SIGCOMM'01, table 1).
    #[must_use]
    pub fn finger_start(self, id: Id, index: u8) -> Id {
        let mut power = [0; 20];
        power[19 - usize::from(index) / 8] = 1 << (index % 8);
        self.wrap(id.plus(Id(power)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_wraps_at_the_end_of_the_circle() {
        assert_eq!(Id::MAX.plus(Id::small(1)), Id::MIN);
        assert_eq!(Id::small(5).distance_to(Id::small(3)).plus(Id::small(2)), Id::MIN);
        assert_eq!(Id::MAX.half().plus(Id::MAX.half()).plus(Id::small(1)), Id::MAX);
        assert!((Id::MAX.half().fraction() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn arcs_follow_the_papers_definition() {
        let id = Id::small;
        assert!(id(2).is_between(id(1), id(3)));
        assert!(!id(1).is_between(id(1), id(3)));
        assert!(id(0).is_between(id(6), id(1)));
        assert!(id(7).is_between(id(4), id(4)));
        assert!(!id(4).is_between(id(4), id(4)));
        assert!(id(4).is_in_arc(id(4), id(4)));
        assert!(id(3).is_in_arc(id(1), id(3)));
        assert!(!id(1).is_in_arc(id(1), id(3)));
    }

    #[test]
    fn fingers_of_the_papers_three_bit_ring() {
        let space = Space::new(3).unwrap();
        let starts: Vec<_> = (0..3).map(|i| space.finger_start(Id::small(6), i)).collect();
        assert_eq!(starts, [Id::small(7), Id::small(0), Id::small(2)]);
    }

    #[test]
    fn text_form_is_read_back() {
        let id = Id::hash(b"sky");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("ff".parse(), Ok(Id::small(255)));
        assert!("".parse::<Id>().is_err());
        assert!("xyz".parse::<Id>().is_err());
        assert!("é".repeat(3).parse::<Id>().is_err());
        assert!("0".repeat(41).parse::<Id>().is_err());
    }
}
