//! Waits for descriptors and deadlines: epoll and a timer on Linux, kqueue on macOS. Level-triggered, so that nothing is missed.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) readable: bool,
    pub(super) writable: bool,
}

/// What has happened to the descriptor of a token. An error or a hang-up is told as readable: a read then says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) token: u64,
    pub(super) readable: bool,
    pub(super) writable: bool,
}

/// Most events that one wait gives.
const MOST_EVENTS: usize = 256;

#[cfg(target_os = "linux")]
pub(super) use linux::Poller;
#[cfg(target_os = "macos")]
pub(super) use macos::Poller;

#[cfg(target_os = "linux")]
mod linux {
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;

    use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };

    use super::{BorrowedFd, Duration, Interest, MOST_EVENTS, Ready, io};

    /// Token of the timer itself.
    const TIMER: u64 = u64::MAX;
    /// Longer waits may end a millisecond late, which is all that epoll's own timeout can.
    const COARSE: Duration = Duration::from_millis(100);

    /// An epoll instance.
    #[derive(Debug)]
    pub(in super::super) struct Poller {
        epoll: OwnedFd,
        timer: OwnedFd,
    }

    fn flags(interest: Interest) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, interest.readable);
        flags.set(EventFlags::OUT, interest.writable);
        flags
    }

    impl Poller {
        pub(in super::super) fn new() -> io::Result<Self> {
            let epoll = epoll::create(CreateFlags::CLOEXEC)?;
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
            Ok(Poller { epoll, timer })
        }

        pub(in super::super) fn add(
            &mut self,
            fd: BorrowedFd<'_>,
            token: u64,
            interest: Interest,
        ) -> io::Result<()> {
            Ok(epoll::add(
                &self.epoll,
                fd,
                EventData::new_u64(token),
                flags(interest),
            )?)
        }

        pub(in super::super) fn modify(
            &mut self,
            fd: BorrowedFd<'_>,
            token: u64,
            interest: Interest,
        ) -> io::Result<()> {
            Ok(epoll::modify(
                &self.epoll,
                fd,
                EventData::new_u64(token),
                flags(interest),
            )?)
        }

        pub(in super::super) fn remove(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
            Ok(epoll::delete(&self.epoll, fd)?)
        }

        /// Waits until something happens or the time is over, and gives what happened to `ready`.
        pub(in super::super) fn wait(
            &mut self,
            timeout: Option<Duration>,
            ready: &mut Vec<Ready>,
        ) -> io::Result<()> {
            ready.clear();
            let mut coarse = None;
            match timeout {
                Some(timeout) if timeout.is_zero() => coarse = Some(Timespec::default()),
                Some(timeout) if timeout < COARSE => self.arm(timeout)?,
                Some(timeout) => coarse = Timespec::try_from(timeout).ok(),
                None => {}
            }
            let mut buffer = [const { MaybeUninit::<Event>::uninit() }; MOST_EVENTS];
            let events = match epoll::wait(&self.epoll, &mut buffer, coarse.as_ref()) {
                Ok((events, _)) => events,
                Err(rustix::io::Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let over = EventFlags::ERR | EventFlags::HUP;
            for event in events {
                let (token, flags) = (event.data.u64(), event.flags);
                if token == TIMER {
                    let mut count = [0; 8];
                    // Read to be quiet again; how often it rang does not matter.
                    let _ = rustix::io::read(&self.timer, &mut count);
                    continue;
                }
                ready.push(Ready {
                    token,
                    readable: flags.intersects(EventFlags::IN | over),
                    writable: flags.contains(EventFlags::OUT),
                });
            }
            Ok(())
        }

        fn arm(&self, timeout: Duration) -> io::Result<()> {
            let once = Itimerspec {
                it_interval: Timespec::default(),
                it_value: Timespec {
                    tv_sec: 0,
                    tv_nsec: timeout.subsec_nanos().max(1).into(),
                },
            };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
            Ok(())
        }
    }
}

#[cfg(target_os = "macos")]
mod macos {
    use std::mem::MaybeUninit;
    use std::os::fd::{AsRawFd, OwnedFd};

    use rustix::event::kqueue::{Event, EventFilter, EventFlags, kevent, kqueue};

    use super::{BorrowedFd, Duration, Interest, MOST_EVENTS, Ready, io};

    /// A kqueue.
    #[derive(Debug)]
    pub(in super::super) struct Poller {
        queue: OwnedFd,
    }

    impl Poller {
        pub(in super::super) fn new() -> io::Result<Self> {
            let queue = kqueue()?;
            rustix::io::fcntl_setfd(&queue, rustix::io::FdFlags::CLOEXEC)?;
            Ok(Poller { queue })
        }

        pub(in super::super) fn add(
            &mut self,
            fd: BorrowedFd<'_>,
            token: u64,
            interest: Interest,
        ) -> io::Result<()> {
            self.modify(fd, token, interest)
        }

        pub(in super::super) fn modify(
            &mut self,
            fd: BorrowedFd<'_>,
            token: u64,
            interest: Interest,
        ) -> io::Result<()> {
            self.change(EventFilter::Read(fd.as_raw_fd()), token, interest.readable)?;
            self.change(EventFilter::Write(fd.as_raw_fd()), token, interest.writable)
        }

        pub(in super::super) fn remove(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
            let none = Interest {
                readable: false,
                writable: false,
            };
            self.modify(fd, 0, none)
        }

        fn change(&self, filter: EventFilter, token: u64, wanted: bool) -> io::Result<()> {
            let flags = if wanted {
                EventFlags::ADD
            } else {
                EventFlags::DELETE
            };
            let event = Event::new(
                filter,
                flags,
                std::ptr::without_provenance_mut(token as usize),
            );
            let mut none: [Event; 0] = [];
            // SAFETY: the descriptor is open: the caller borrows it, and takes it out of the queue before it closes it.
            #[allow(unsafe_code)]
            let changed = unsafe { kevent(&self.queue, &[event], &mut none, None) };
            match changed {
                // What was not waited for need not be taken out.
                Err(rustix::io::Errno::NOENT) if !wanted => Ok(()),
                changed => changed.map(|_| ()).map_err(io::Error::from),
            }
        }

        /// Waits until something happens or the time is over, and gives what happened to `ready`.
        pub(in super::super) fn wait(
            &mut self,
            timeout: Option<Duration>,
            ready: &mut Vec<Ready>,
        ) -> io::Result<()> {
            ready.clear();
            let mut buffer = [const { MaybeUninit::<Event>::uninit() }; MOST_EVENTS];
            // SAFETY: no change is made, so no descriptor is named.
            #[allow(unsafe_code)]
            let waited = unsafe { kevent(&self.queue, &[], &mut buffer, timeout) };
            let events = match waited {
                Ok((events, _)) => events,
                Err(rustix::io::Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            for event in events {
                let token = event.udata().addr() as u64;
                let writable = matches!(event.filter(), EventFilter::Write(_));
                ready.push(Ready {
                    token,
                    readable: !writable,
                    writable,
                });
            }
            Ok(())
        }
    }
}
