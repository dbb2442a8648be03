//! A command in a guest, joined to this process's terminal, standard streams, signals and exit code.
//!
//! ```text
//!  standard input ──► stdin        SIGINT, SIGTERM, SIGHUP, SIGQUIT ──► signal      SIGWINCH ──► resize
//!  standard output ◄── stdout      standard error ◄── stderr             exit code ◄── exit, after all output
//! ```
//! With a terminal Ctrl-C is a byte that the guest's terminal understands; without one it is a signal that is passed on.

use std::io;
use std::pin::pin;

use innkeeper::api::ErrorKind;
use innkeeper::guest::message::{ExecRequest, ExitStatus};
use innkeeper::guest::{ExecPosition, ExecSession, GuestChannel, GuestError, InputReplay};
use innkeeper::{Error, Host};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{EXIT_OUR_FAILURE, Failure, Result};
use crate::terminal::{self, RawMode};

/// Exit code of a command that the guest can't execute.
const EXIT_NOT_EXECUTABLE: u8 = 126;
/// Exit code of a command that the guest does not have.
const EXIT_NOT_FOUND: u8 = 127;
/// Signal number of a broken pipe on Linux (signal(7)).
const SIGPIPE: i32 = 13;
/// Interrupts after which a command that does not listen is left to itself.
const PATIENCE: u32 = 3;
/// Bytes moved at a time.
const PIECE: usize = 64 * 1024;

/// Whether a command gets our standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// It does.
    Passed,
    /// It finds its input at its end at once.
    Empty,
}

/// Runs a command in a guest and returns its exit code. Any failure of ours has the code 125.
pub(crate) async fn run(host: &Host, name: &str, request: ExecRequest, input: Input) -> Result<u8> {
    let guest = host.guest(name).await.map_err(ours)?;
    run_on(host, &guest, name, request, input).await
}

/// Does the same over an open channel.
///
/// If the VM's keeper dies meanwhile the command runs on, and is taken up again through the keeper that replaces it: from the byte of
/// output that was received last, and to the byte of input that its agent took over last.
pub(crate) async fn run_on(
    host: &Host,
    guest: &GuestChannel,
    name: &str,
    request: ExecRequest,
    input: Input,
) -> Result<u8> {
    let has_terminal = request.tty.is_some();
    // Signals are ours before the command runs, so that none of them ends us and leaves it behind.
    let mut signals =
        Signals::catch().map_err(|source| ours(Error::io("catching signals", source)))?;
    let doing = format!(
        "running {} in {name}",
        request.argv.first().map_or("", String::as_str)
    );
    let session = guest
        .exec(request)
        .await
        .map_err(|error| refused(error, &doing))?;
    let raw = match has_terminal {
        true => Some(RawMode::enter().map_err(|failure| failure.with_code(EXIT_OUR_FAILURE))?),
        false => None,
    };
    let mut feed = Feed::new(tokio::io::stdin(), input);
    let mut ended = join(session, &mut signals, &mut feed).await;
    while let Err(Ended::Lost(position)) = ended {
        ended = match again(host, name, position).await {
            Ok(session) => join(session, &mut signals, &mut feed).await,
            Err(failure) => return Err(failure),
        };
    }
    // The terminal is its old self before anything is told.
    drop(raw);
    match ended {
        Ok(status) => Ok(exit_code(status)),
        Err(Ended::ReaderGone) => Err(Failure::AlreadyTold(128 + SIGPIPE as u8)),
        Err(Ended::GivenUp) => {
            let message = format!("{doing} was given up after {PATIENCE} interrupts");
            let error = Error::new(ErrorKind::Interrupted, message)
                .with_hint("it gets a hang-up signal in some seconds");
            Err(error.into())
        }
        Err(Ended::Lost(_)) => Err(ours(Error::from(GuestError::LinkLost).while_doing(doing))),
        Err(Ended::Guest(error)) => Err(ours(Error::from(error).while_doing(doing))),
        Err(Ended::Here(source)) => Err(ours(Error::io(doing, source))),
    }
}

/// Takes a command up again whose link was lost.
async fn again(host: &Host, name: &str, position: ExecPosition) -> Result<ExecSession> {
    let doing = format!("taking the command up again in {name}");
    let guest = host
        .guest(name)
        .await
        .map_err(|error| ours(error.while_doing(doing.clone())))?;
    guest
        .attach(position)
        .await
        .map_err(|error| ours(Error::from(error).while_doing(doing)))
}

/// Why a session ended without an exit status.
#[derive(Debug)]
enum Ended {
    /// Nobody reads our output any more.
    ReaderGone,
    /// The user interrupted it again and again.
    GivenUp,
    /// The link to the agent was lost; the command may run on.
    Lost(ExecPosition),
    /// Something between us and the guest.
    Guest(GuestError),
    /// Something on this side.
    Here(io::Error),
}

async fn join(
    session: ExecSession,
    signals: &mut Signals,
    feed: &mut Feed<impl AsyncRead + Unpin>,
) -> Result<ExitStatus, Ended> {
    let ExecSession {
        stdin,
        mut stdout,
        mut stderr,
        mut control,
    } = session;
    feed.resume_at(control.stdin_offset())
        .map_err(Ended::Guest)?;
    let mut output = pin!(async move {
        let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
        tokio::try_join!(pump(&mut stdout, &mut out), pump(&mut stderr, &mut err))
    });
    let mut feed = pin!(feed.run(stdin));
    let (mut status, mut output_done, mut fed, mut interrupts) = (None, false, false, 0);
    loop {
        if output_done && let Some(status) = status {
            return Ok(status);
        }
        tokio::select! {
            ended = control.wait(), if status.is_none() => match ended {
                Ok(ended) => status = Some(ended),
                Err(GuestError::LinkLost) => return Err(Ended::Lost(control.position())),
                Err(error) => return Err(Ended::Guest(error)),
            },
            written = &mut output, if !output_done => match written {
                Ok(_) => output_done = true,
                Err(Pumped::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                    // As a pipe would: the command is told that nobody reads. It may be gone by now.
                    let _ = control.signal(SIGPIPE);
                    return Err(Ended::ReaderGone);
                }
                // The wait beside it says why.
                Err(Pumped::Read) => output_done = true,
                Err(Pumped::Write(error)) => return Err(Ended::Here(error)),
            },
            () = &mut feed, if !fed => fed = true,
            caught = signals.next() => match caught {
                Caught::Resize => {
                    let (rows, columns) = terminal::size();
                    control.resize(rows, columns).map_err(Ended::Guest)?;
                }
                Caught::Signal(number) => {
                    interrupts += u32::from(number == SignalKind::interrupt().as_raw_value());
                    if interrupts >= PATIENCE {
                        return Err(Ended::GivenUp);
                    }
                    control.signal(number).map_err(Ended::Guest)?;
                }
            },
        }
    }
}

/// Which side of a pump failed.
#[derive(Debug)]
enum Pumped {
    /// Reading from the guest.
    Read,
    /// Writing here.
    Write(io::Error),
}

async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> Result<(), Pumped> {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = from.read(&mut buffer).await.map_err(|_| Pumped::Read)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count])
            .await
            .map_err(Pumped::Write)?;
        to.flush().await.map_err(Pumped::Write)?;
    }
}

/// Our standard input on its way into the guest. It outlives an attachment: what was read and has not arrived is sent to the next one.
struct Feed<R> {
    source: R,
    input: Input,
    replay: InputReplay,
    piece: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Feed<R> {
    fn new(source: R, input: Input) -> Self {
        Feed {
            source,
            input,
            replay: InputReplay::default(),
            piece: vec![0; PIECE],
        }
    }

    /// Goes on at the byte that the agent wants next.
    fn resume_at(&mut self, offset: u64) -> Result<(), GuestError> {
        self.replay.resume_at(offset)
    }

    /// Passes input on, then its end. A command that does not want it any more is no failure, and of a link that is lost the session tells.
    ///
    /// It may be dropped at any point and run again: bytes are noted as sent in the same step as they are.
    async fn run(&mut self, mut stdin: impl AsyncWrite + Unpin) {
        while self.input == Input::Passed || !self.replay.unsent().is_empty() {
            while !self.replay.unsent().is_empty() {
                match stdin.write(self.replay.unsent()).await {
                    Ok(count) => self.replay.advance(count),
                    Err(_) => return,
                }
            }
            if self.input == Input::Passed {
                // An input that can't be read is at its end, as for any program.
                match self.source.read(&mut self.piece).await {
                    Ok(count) if count > 0 => self.replay.push(&self.piece[..count]),
                    _ => self.input = Input::Empty,
                }
            }
        }
        let _ = stdin.shutdown().await;
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    // Exit codes and signals of Linux are below 256; what a hostile agent makes up is still a failure.
    u8::try_from(status.shell_code()).unwrap_or(u8::MAX)
}

fn ours(error: Error) -> Failure {
    Failure::from(error).with_code(EXIT_OUR_FAILURE)
}

fn refused(error: GuestError, doing: &str) -> Failure {
    let code = match error {
        GuestError::CommandNotFound(_) => EXIT_NOT_FOUND,
        GuestError::CannotExecute(_) => EXIT_NOT_EXECUTABLE,
        _ => EXIT_OUR_FAILURE,
    };
    Failure::from(Error::from(error).while_doing(doing)).with_code(code)
}

/// What was caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caught {
    /// A signal for the command, by its number.
    Signal(i32),
    /// The terminal has another size.
    Resize,
}

/// The signals that concern a command in a guest.
#[derive(Debug)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    resize: Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            resize: signal(SignalKind::window_change())?,
        })
    }

    /// Waits for the next one. These four have the same numbers on every system (POSIX's kill utility lists them).
    async fn next(&mut self) -> Caught {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.quit.recv() => SignalKind::quit(),
            _ = self.resize.recv() => return Caught::Resize,
        };
        Caught::Signal(kind.as_raw_value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_a_shell() {
        assert_eq!(exit_code(ExitStatus::Code(3)), 3);
        assert_eq!(exit_code(ExitStatus::Signal(9)), 137);
        assert_eq!(exit_code(ExitStatus::Code(-1)), 255);
        assert_eq!(exit_code(ExitStatus::Code(70_000)), 255);
    }

    #[test]
    fn what_can_not_be_run_has_its_own_code() {
        let code = |error| refused(error, "running x in web").tell(true);
        assert_eq!(code(GuestError::CommandNotFound("no x".into())), 127);
        assert_eq!(
            code(GuestError::CannotExecute("x is a directory".into())),
            126
        );
        assert_eq!(code(GuestError::LinkLost), 125);
    }

    #[test]
    fn input_goes_on_from_the_byte_that_the_next_attachment_wants() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let bytes: Vec<u8> = (0..500_000u32).map(|it| (it % 251) as u8).collect();
            let mut feed = Feed::new(bytes.as_slice(), Input::Passed);
            let (near, mut far) = tokio::io::duplex(4096);
            let mut first = vec![0; 100_000];
            tokio::select! {
                () = feed.run(near) => panic!("nobody read it all"),
                read = far.read_exact(&mut first) => drop(read.unwrap()),
            }
            // Of what was read, 30 000 bytes had not arrived.
            feed.resume_at(70_000).unwrap();
            let (near, mut far) = tokio::io::duplex(4096);
            let mut rest = Vec::new();
            let (read, ()) = tokio::join!(far.read_to_end(&mut rest), feed.run(near));
            read.unwrap();
            assert_eq!(first, bytes[..100_000]);
            assert!(rest == bytes[70_000..], "{} bytes came", rest.len());
            // And the end once more, for an attachment that comes after it.
            feed.resume_at(500_000).unwrap();
            let (near, mut far) = tokio::io::duplex(16);
            feed.run(near).await;
            assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        });
    }

    #[test]
    fn a_pump_moves_everything_and_tells_which_side_failed() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let bytes: Vec<u8> = (0..200_000u32).map(|it| it as u8).collect();
            let mut moved = Vec::new();
            pump(&mut bytes.as_slice(), &mut moved).await.unwrap();
            assert_eq!(moved, bytes);
            let (mut near, far) = tokio::io::duplex(16);
            drop(far);
            let failed = pump(&mut bytes.as_slice(), &mut near).await;
            assert!(matches!(failed, Err(Pumped::Write(_))), "{failed:?}");
        });
    }
}
