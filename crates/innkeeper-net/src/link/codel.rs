//! CoDel: drops from a queue in which frames wait too long for too long. Source: RFC 8289, section 5.

use std::time::Duration;

use crate::time::{Time, nanos};

/// What CoDel remembers of a queue.
#[derive(Debug, Clone, Default)]
pub(super) struct CoDel {
    /// When the waiting will have been too long for an interval.
    first_above: Option<Time>,
    dropping: bool,
    next_drop: Time,
    count: u32,
    last_count: u32,
}

impl CoDel {
    /// Decides about a frame that leaves the queue at `now` after it waited for `sojourn`, with so many bytes behind it. True drops it.
    pub(super) fn drops(
        &mut self,
        sojourn: Duration,
        behind: usize,
        now: Time,
        target: Duration,
        interval: Duration,
    ) -> bool {
        let above = self.is_above(sojourn, behind, now, target, interval);
        if self.dropping {
            if !above {
                self.dropping = false;
                return false;
            }
            if now < self.next_drop {
                return false;
            }
            self.count = self.count.saturating_add(1);
            self.next_drop = control_law(self.next_drop, interval, self.count);
            return true;
        }
        if !above {
            return false;
        }
        self.dropping = true;
        // It starts near the rate that worked before, if that was lately.
        let delta = self.count.saturating_sub(self.last_count);
        let lately = now.since(self.next_drop) < interval * 16;
        self.count = if delta > 1 && lately { delta } else { 1 };
        self.last_count = self.count;
        self.next_drop = control_law(now, interval, self.count);
        true
    }

    fn is_above(
        &mut self,
        sojourn: Duration,
        behind: usize,
        now: Time,
        target: Duration,
        interval: Duration,
    ) -> bool {
        // Less than a frame behind it: the queue is as short as it can be.
        if sojourn < target || behind <= 1514 {
            self.first_above = None;
            return false;
        }
        match self.first_above {
            None => {
                self.first_above = Some(now.after(interval));
                false
            }
            Some(first) => now >= first,
        }
    }
}

fn control_law(from: Time, interval: Duration, count: u32) -> Time {
    let step = nanos(interval) as f64 / libm::sqrt(f64::from(count.max(1)));
    from.after(Duration::from_nanos(step as u64))
}
