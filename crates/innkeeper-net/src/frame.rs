//! A view of an Ethernet frame: addresses, VLAN tag, and the frame with its tag changed.
//!
//! Sources: IEEE 802.3 clause 3 (addresses, type), IEEE 802.1Q clause 9 (tag). Frames carry no check sequence here, as on a virtual wire.

use crate::batch;

/// Length of the header without a tag, in bytes.
pub const HEADER: usize = 14;
/// Length of a VLAN tag, in bytes.
pub const TAG: usize = 4;

const TYPE_VLAN: [u8; 2] = [0x81, 0x00];
/// Where the tag stands, behind both addresses.
const TAG_AT: usize = 12;

/// A station's address as one number: the six bytes, most significant first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Station(u64);

impl Station {
    /// Makes the address of six bytes in transmission order.
    #[inline]
    pub fn new(octets: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = octets;
        Station(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }

    /// Returns the address as a number below 2^48.
    #[inline]
    pub fn number(self) -> u64 {
        self.0
    }

    /// Tells whether it names a group (multicast or broadcast): the lowest bit of the first byte.
    #[inline]
    pub fn is_group(self) -> bool {
        self.0 & (1 << 40) != 0
    }

    /// Tells whether it is one of 01:80:c2:00:00:00 to 0f, which no bridge hands on (IEEE 802.1Q, table 8-1).
    #[inline]
    pub fn is_link_local(self) -> bool {
        self.0 & !0xf == 0x0180_c200_0000
    }
}

impl From<crate::MacAddr> for Station {
    fn from(mac: crate::MacAddr) -> Self {
        Station::new(mac.octets())
    }
}

/// A frame of at least a header.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a>(&'a [u8]);

impl<'a> Frame<'a> {
    /// Looks at bytes as a frame; none if they are shorter than a header.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        (bytes.len() >= HEADER).then_some(Frame(bytes))
    }

    /// Returns all bytes.
    #[inline]
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Returns the address it is sent to.
    #[inline]
    pub fn destination(self) -> Station {
        Station::new([
            self.0[0], self.0[1], self.0[2], self.0[3], self.0[4], self.0[5],
        ])
    }

    /// Returns the address it says it comes from.
    #[inline]
    pub fn source(self) -> Station {
        Station::new([
            self.0[6], self.0[7], self.0[8], self.0[9], self.0[10], self.0[11],
        ])
    }

    /// Returns the tag's control information (priority and VLAN); none without a whole tag.
    #[inline]
    pub fn tag(self) -> Option<u16> {
        (self.0[TAG_AT..TAG_AT + 2] == TYPE_VLAN && self.0.len() >= HEADER + TAG)
            .then(|| u16::from_be_bytes([self.0[TAG_AT + 2], self.0[TAG_AT + 3]]))
    }

    /// Returns how many bytes it carries behind its header and tag.
    #[inline]
    pub fn payload_length(self) -> usize {
        let tag = if self.tag().is_some() { TAG } else { 0 };
        self.0.len() - HEADER - tag
    }
}

/// What is done to a frame's tag on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retag {
    /// It goes as it came.
    Keep,
    /// The tag is taken off.
    Strip,
    /// A tag with this control information stands in it, whether or not there was one.
    Set(u16),
}

impl Retag {
    /// Appends the frame so changed, behind its prefix. The frame has a tag if it is to lose it.
    pub(crate) fn push(self, frame: Frame<'_>, batch: &mut Vec<u8>) {
        let (addresses, rest) = frame.0.split_at(TAG_AT);
        let rest = match (self, frame.tag()) {
            (Retag::Keep, _) | (_, None) => rest,
            (Retag::Strip | Retag::Set(_), Some(_)) => &rest[TAG..],
        };
        let tag = match self {
            Retag::Set(control) => {
                let [high, low] = control.to_be_bytes();
                Some([TYPE_VLAN[0], TYPE_VLAN[1], high, low])
            }
            Retag::Keep | Retag::Strip => None,
        };
        let tag: &[u8] = tag.as_ref().map_or(&[], |tag| tag);
        batch.extend_from_slice(&batch::prefix(addresses.len() + tag.len() + rest.len()));
        batch.extend_from_slice(addresses);
        batch.extend_from_slice(tag);
        batch.extend_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn retagged(retag: Retag, bytes: &[u8]) -> Vec<u8> {
        let mut batch = Vec::new();
        retag.push(Frame::new(bytes).expect("a header"), &mut batch);
        batch::frames(&batch).next().expect("a frame").to_vec()
    }

    proptest! {
        #[test]
        fn a_tag_that_is_set_comes_off_again(mut bytes in prop::collection::vec(any::<u8>(), HEADER..100), control: u16, other: u16) {
            bytes[TAG_AT..TAG_AT + 2].copy_from_slice(&[0x08, 0x00]);
            let tagged = retagged(Retag::Set(control), &bytes);
            prop_assert_eq!(Frame::new(&tagged).unwrap().tag(), Some(control));
            prop_assert_eq!(Frame::new(&tagged).unwrap().payload_length(), bytes.len() - HEADER);
            prop_assert_eq!(&retagged(Retag::Strip, &tagged), &bytes);
            prop_assert_eq!(&retagged(Retag::Set(other), &tagged), &retagged(Retag::Set(other), &bytes));
            prop_assert_eq!(&retagged(Retag::Keep, &tagged), &tagged);
        }
    }

    #[test]
    fn groups_and_what_stays_on_the_link() {
        assert!(Station::new([0xff; 6]).is_group());
        assert!(Station::new([1, 0, 0x5e, 0, 0, 1]).is_group());
        assert!(!Station::new([0x52, 0x54, 0, 0, 0, 1]).is_group());
        assert!(Station::new([1, 0x80, 0xc2, 0, 0, 0xe]).is_link_local());
        assert!(!Station::new([1, 0x80, 0xc2, 0, 0, 0x10]).is_link_local());
    }

    #[test]
    fn a_cut_off_tag_is_none() {
        let mut bytes = [0u8; HEADER + 2];
        bytes[TAG_AT..TAG_AT + 2].copy_from_slice(&TYPE_VLAN);
        assert_eq!(Frame::new(&bytes).unwrap().tag(), None);
        assert!(Frame::new(&bytes[..HEADER - 1]).is_none());
    }
}
