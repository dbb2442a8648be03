//! Input of a command, kept for as long as the way to the guest can lose it.
//!
//! ```text
//!  0 ........ first ............ sent ........ end
//!  forgotten    │ kept: may be     │ not sent yet
//!               │ lost on the way  │
//! ```
//! A stream's credit bounds what is on its way: no more than [`MAX_WINDOW`] bytes are ever sent and not yet taken over by the agent. So that
//! many bytes behind `sent` are kept, and an agent that is attached to again can name any of them as the next one it wants.

use super::GuestError;
use innkeeper_agent::mux::MAX_WINDOW;
use std::collections::VecDeque;

/// What goes to a command's standard input, across the attachments of one session.
#[derive(Debug, Default)]
pub struct InputReplay {
    kept: VecDeque<u8>,
    first: u64,
    sent: usize,
}

impl InputReplay {
    /// Adds bytes that are to be sent.
    pub fn push(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
    }

    /// Returns bytes to send next; none when all that was pushed is sent. There may be more behind them.
    pub fn unsent(&self) -> &[u8] {
        let (front, back) = self.kept.as_slices();
        match front.get(self.sent..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => &back[self.sent - front.len()..],
        }
    }

    /// Notes that the first bytes of [`InputReplay::unsent`] were sent, and forgets what can't be asked for again.
    pub fn advance(&mut self, count: usize) {
        self.sent = (self.sent + count).min(self.kept.len());
        let forgotten = self.sent.saturating_sub(MAX_WINDOW as usize);
        self.kept.drain(..forgotten);
        self.first += forgotten as u64;
        self.sent -= forgotten;
    }

    /// Goes on from the byte that an agent wants next, as [`super::ExecControl::stdin_offset`] tells it.
    ///
    /// Errors: the agent names a byte that was never sent, or one it had confirmed.
    pub fn resume_at(&mut self, offset: u64) -> Result<(), GuestError> {
        let end = self.first + self.kept.len() as u64;
        match offset.checked_sub(self.first) {
            Some(behind) if offset <= end => {
                // At most the length of what is kept.
                self.sent = behind as usize;
                Ok(())
            }
            _ => Err(GuestError::Protocol(format!(
                "it wants the command's input from byte {offset}, and bytes {} to {end} can be sent again",
                self.first
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(from: u64, length: usize) -> Vec<u8> {
        (from..from + length as u64)
            .map(|index| (index % 251) as u8)
            .collect()
    }

    fn send_all(replay: &mut InputReplay) -> Vec<u8> {
        let mut sent = Vec::new();
        while !replay.unsent().is_empty() {
            // In small and odd steps, as credit comes.
            let count = replay.unsent().len().min(7919);
            sent.extend_from_slice(&replay.unsent()[..count]);
            replay.advance(count);
        }
        sent
    }

    #[test]
    fn what_may_be_lost_is_sent_again_from_any_byte() {
        let mut replay = InputReplay::default();
        let mut end = 0;
        for length in [10, 100_000, 1, 900_000, 300_000] {
            replay.push(&piece(end, length));
            assert_eq!(send_all(&mut replay), piece(end, length));
            end += length as u64;
        }
        for back in [0, 1, 12_345, u64::from(MAX_WINDOW)] {
            replay.resume_at(end - back).expect("it is kept");
            assert_eq!(send_all(&mut replay), piece(end - back, back as usize));
        }
    }

    #[test]
    fn memory_is_bounded_by_the_window() {
        let mut replay = InputReplay::default();
        for _ in 0..100 {
            replay.push(&[1; 65_536]);
            send_all(&mut replay);
            assert!(replay.kept.len() <= MAX_WINDOW as usize);
        }
    }

    #[test]
    fn bytes_that_nobody_has_are_refused() {
        let mut replay = InputReplay::default();
        replay.push(&vec![1; 3 * MAX_WINDOW as usize]);
        send_all(&mut replay);
        for offset in [
            0,
            u64::from(MAX_WINDOW),
            u64::from(MAX_WINDOW) * 3 + 1,
            u64::MAX,
        ] {
            replay.resume_at(offset).expect_err("it can't be sent");
        }
        // A refusal changes nothing.
        assert!(replay.unsent().is_empty());
    }
}
