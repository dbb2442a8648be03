//! The time of day, for people; durations are measured with the monotonic clock and never with this.

use std::time::SystemTime;

/// Returns the time of day as RFC 3339 text, UTC, with milliseconds.
pub(crate) fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}
