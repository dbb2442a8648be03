//! Makes text from a guest safe to show on a terminal.
//!
//! A guest that writes to its console can write escape sequences that move the cursor, change the title or make some terminals answer.
//! On a terminal only colours pass; in a file or a pipe the bytes stay as they are.

/// Returns text with every control character escaped, for one cell or one line.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Returns text with every control character but line breaks escaped.
pub(crate) fn lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(one_line).collect();
    lines.join("\n")
}

/// Where the filter is within an escape sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    /// Outside of one.
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// In a control sequence (ESC [), up to its final byte.
    Control,
    /// In a string (ESC ] and others), up to BEL or ESC \.
    String,
    /// After ESC in a string.
    StringEscape,
}

/// Longest control sequence that is kept to see whether it is a colour.
const LONGEST_COLOUR: usize = 32;

/// Filters console output for a terminal, piece by piece.
#[derive(Debug, Default)]
pub(crate) struct ConsoleFilter {
    place: Place,
    sequence: Vec<u8>,
}

impl ConsoleFilter {
    /// Returns the harmless part of `bytes`: text, line breaks, tabs and colours (SGR sequences, ECMA-48 8.3.117).
    pub(crate) fn filter(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut kept = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.place = match (self.place, byte) {
                (Place::Text, 0x1b) => Place::Escape,
                (Place::Text, b'\n' | b'\t' | b'\r') => {
                    kept.push(byte);
                    Place::Text
                }
                (Place::Text, 0..=0x1f | 0x7f) => Place::Text,
                (Place::Text, _) => {
                    kept.push(byte);
                    Place::Text
                }
                (Place::Escape, b'[') => {
                    self.sequence.clear();
                    Place::Control
                }
                (Place::Escape, b']' | b'P' | b'X' | b'^' | b'_') => Place::String,
                // Intermediate bytes such as the parenthesis of a character set; the final byte follows.
                (Place::Escape, 0x20..=0x2f | 0x1b) => Place::Escape,
                (Place::Escape, _) => Place::Text,
                (Place::Control, b'0'..=b'9' | b';' | b':') => {
                    if self.sequence.len() < LONGEST_COLOUR {
                        self.sequence.push(byte);
                    }
                    Place::Control
                }
                (Place::Control, b'm') if self.sequence.len() < LONGEST_COLOUR => {
                    kept.extend_from_slice(b"\x1b[");
                    kept.append(&mut self.sequence);
                    kept.push(b'm');
                    Place::Text
                }
                (Place::Control, 0x20..=0x3f) => {
                    // A private sequence: whatever its final byte is, it is no colour.
                    self.sequence.resize(LONGEST_COLOUR, 0);
                    Place::Control
                }
                (Place::Control, 0x1b) => Place::Escape,
                (Place::Control, _) => Place::Text,
                (Place::String, 0x07) => Place::Text,
                // A string that a crash cut off must not swallow the rest of the log.
                (Place::String, b'\n') => {
                    kept.push(b'\n');
                    Place::Text
                }
                (Place::String | Place::StringEscape, 0x1b) => Place::StringEscape,
                (Place::String, _) => Place::String,
                (Place::StringEscape, b'\\') => Place::Text,
                (Place::StringEscape, _) => Place::String,
            };
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(text: &str) -> String {
        String::from_utf8(ConsoleFilter::default().filter(text.as_bytes())).unwrap()
    }

    #[test]
    fn keeps_colours_and_drops_the_rest() {
        let colours = "\x1b[0;32m  OK  \x1b[0m\tdone\r\n";
        assert_eq!(filtered(colours), colours);
        assert_eq!(filtered("a\x1b[2J\x1b[1;1Hb"), "ab");
        assert_eq!(filtered("a\x1b]0;title\x07b"), "ab");
        assert_eq!(filtered("a\x1b]0;title\x1b\\b"), "ab");
        assert_eq!(filtered("a\x1b[?25lb\x1b[6nc\x1b(Bd\x07e"), "abcde");
        assert_eq!(filtered("a\x1b[>1mb"), "ab");
        assert_eq!(filtered("a\x1b]cut off\nb"), "a\nb");
    }

    proptest::proptest! {
        #[test]
        fn splits_change_nothing(bytes: Vec<u8>, at: proptest::sample::Index) {
            let whole = ConsoleFilter::default().filter(&bytes);
            let (left, right) = bytes.split_at(at.index(bytes.len() + 1));
            let mut filter = ConsoleFilter::default();
            let mut parts = filter.filter(left);
            parts.extend(filter.filter(right));
            proptest::prop_assert_eq!(whole, parts);
        }

        #[test]
        fn nothing_but_colours_is_left(bytes: Vec<u8>) {
            let kept = ConsoleFilter::default().filter(&bytes);
            proptest::prop_assert_eq!(ConsoleFilter::default().filter(&kept), kept);
        }
    }
}
