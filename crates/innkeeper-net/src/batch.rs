//! Many frames in one buffer: each behind its length as four bytes, most significant first.
//!
//! It is what QEMU speaks on a stream (QEMU, `net/stream.c`: the length counts the frame alone), so that a stream's bytes are looked at
//! where they lie and handed on without a copy; ports of other kinds read into this form.

/// Length of the prefix, in bytes.
pub const PREFIX: usize = 4;

/// Longest frame that a prefix may announce, in bytes: the largest that QEMU sends (`NET_BUFSIZE`, 4096 + 65536). What announces more
/// has lost its place in the stream.
pub const LONGEST: usize = 4096 + 65536;

/// What stands at a place of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// A whole frame.
    Frame {
        /// The frame without its prefix.
        frame: &'a [u8],
        /// Where the next item begins.
        end: usize,
    },
    /// The buffer ends before the frame does.
    Partial,
    /// A length beyond [`LONGEST`]: nothing after it can be made sense of.
    Lost(u32),
}

/// Looks at what stands at `at`.
#[inline]
pub fn item(bytes: &[u8], at: usize) -> Item<'_> {
    let Some((prefix, rest)) = bytes
        .get(at..)
        .and_then(<[u8]>::split_first_chunk::<PREFIX>)
    else {
        return Item::Partial;
    };
    let announced = u32::from_be_bytes(*prefix);
    let length = announced as usize;
    if length > LONGEST {
        return Item::Lost(announced);
    }
    match rest.get(..length) {
        Some(frame) => Item::Frame {
            frame,
            end: at + PREFIX + length,
        },
        None => Item::Partial,
    }
}

/// Returns the prefix of a frame of `length` bytes.
///
/// # Panics
/// When the frame is longer than [`LONGEST`].
#[inline]
pub fn prefix(length: usize) -> [u8; PREFIX] {
    assert!(length <= LONGEST, "a frame of {length} bytes");
    // It fits: LONGEST is far below 4 GiB.
    (length as u32).to_be_bytes()
}

/// Appends a frame.
///
/// # Panics
/// When the frame is longer than [`LONGEST`].
pub fn push(batch: &mut Vec<u8>, frame: &[u8]) {
    batch.extend_from_slice(&prefix(frame.len()));
    batch.extend_from_slice(frame);
}

/// Returns the whole frames of a buffer in order; it ends before what is cut off or lost.
pub fn frames(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    std::iter::from_fn(move || match item(bytes, at) {
        Item::Frame { frame, end } => {
            at = end;
            Some(frame)
        }
        Item::Partial | Item::Lost(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_pushed_comes_back(frames_in in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20), cut in 0usize..40) {
            let mut batch = Vec::new();
            for frame in &frames_in {
                push(&mut batch, frame);
            }
            let back: Vec<&[u8]> = frames(&batch).collect();
            prop_assert_eq!(&back, &frames_in.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let cut = batch.len().saturating_sub(cut);
            prop_assert!(frames(&batch[..cut]).count() <= frames_in.len());
        }

        #[test]
        fn no_bytes_lead_outside(bytes in prop::collection::vec(any::<u8>(), 0..64), at in 0usize..80) {
            if let Item::Frame { frame, end } = item(&bytes, at) {
                prop_assert_eq!(end, at + PREFIX + frame.len());
                prop_assert!(end <= bytes.len());
            }
        }
    }

    #[test]
    fn a_length_beyond_all_frames_is_lost() {
        assert_eq!(item(&[0, 1, 16, 1], 0), Item::Lost(69633));
        assert_eq!(item(&[0, 1, 16, 0], 0), Item::Partial);
    }
}
