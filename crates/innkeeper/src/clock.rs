//! The time of day, for people; durations are measured with the monotonic clock and never with this.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// Returns the time of day as RFC 3339 text, UTC, with milliseconds.
pub(crate) fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Returns how long ago this computer was started, sleep included: a clock that all processes share and that nobody sets.
pub(crate) fn since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = ClockId::Boottime;
    // Darwin's monotonic clock goes on while the computer sleeps (clock_gettime(3)).
    #[cfg(not(target_os = "linux"))]
    let clock = ClockId::Monotonic;
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}
