//! The time that is passed in: nanoseconds since a start that the caller chose. The core reads no clock.

use std::time::Duration;

/// A moment, in nanoseconds since the caller's start. Wraps nowhere: it saturates after 584 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// The start itself.
    pub const ZERO: Time = Time(0);

    /// Makes the moment that is so many nanoseconds after the start.
    pub fn from_nanos(nanos: u64) -> Self {
        Time(nanos)
    }

    /// Returns the nanoseconds since the start.
    pub fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the moment that is `later` after this one.
    #[must_use]
    pub fn after(self, later: Duration) -> Self {
        Time(self.0.saturating_add(nanos(later)))
    }

    /// Returns how long ago `earlier` was, zero if it is still to come.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Returns a duration in nanoseconds, at most what fits.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
