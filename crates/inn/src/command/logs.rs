//! `inn logs`: what a guest wrote to its console, or what the keeper, the hypervisor or the agent had to say.
//!
//! Files are read as they are; on a terminal nothing that a guest wrote is obeyed but colours. A file that is followed is looked at
//! ten times a second: it may be rotated away under us, and a new one appear.

use std::fs::{File, Metadata};
use std::io::{self, IsTerminal, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use innkeeper::api::ErrorKind;
use innkeeper::guest::message::GuestLog;
use innkeeper::{Error, Host, LogKind};

use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::terminal_text::ConsoleFilter;

/// Time between two looks at a file that is followed.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes read at a time.
const PIECE: usize = 64 * 1024;

/// Show a VM's logs: its serial console, unless another is asked for
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn logs web
  inn logs web -f -n 20
  inn logs web --vmm                   what the hypervisor said")]
pub(crate) struct Args {
    /// VM
    name: String,

    #[command(flatten)]
    which: Which,

    /// Go on with what is written from now on
    #[arg(short, long)]
    follow: bool,

    /// Only the last lines
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
}

/// Which log.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Which {
    /// The guest's serial console (the default)
    #[arg(long)]
    serial: bool,
    /// The process beside the VM
    #[arg(long)]
    keeper: bool,
    /// The hypervisor
    #[arg(long)]
    vmm: bool,
    /// The agent in the guest, asked of the running guest
    #[arg(long, conflicts_with = "follow")]
    agent: bool,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let mut screen = Screen::new(output);
        if self.which.agent {
            let guest = host.guest(&self.name).await?;
            let log = guest.read_log(GuestLog::Agent).await.map_err(Error::from)?;
            let mut log = io::Cursor::new(log);
            skip_to_last_lines(&mut log, self.lines).map_err(in_memory)?;
            screen
                .drain(&mut log)
                .map_err(failed("the agent's log"))??;
            return Ok(0);
        }
        let kind = match (self.which.keeper, self.which.vmm) {
            (true, _) => LogKind::Keeper,
            (_, true) => LogKind::Vmm,
            _ => LogKind::Serial,
        };
        let path = host.log_path(&self.name, kind)?;
        let place = path.display().to_string();
        let mut file = match File::open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.follow => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let message = format!("{} has written no such log yet", self.name);
                return Err(Error::new(ErrorKind::NotFound, message)
                    .with_hint("add -f to wait for it")
                    .into());
            }
            Err(error) => return Err(failed(&place)(error)),
        };
        if let Some(file) = &mut file {
            skip_to_last_lines(file, self.lines).map_err(failed(&place))?;
            screen.drain(file).map_err(failed(&place))??;
        }
        if self.follow {
            follow(&path, file, &mut screen).await?;
        }
        Ok(0)
    }
}

fn failed(what: &str) -> impl Fn(io::Error) -> Failure + use<> {
    let what = what.to_owned();
    move |source| Error::io(format!("reading {what}"), source).into()
}

fn in_memory(source: io::Error) -> Failure {
    Error::io("reading the agent's log", source).into()
}

/// Writes what is appended to the file at `path`, for ever, through rotations.
async fn follow(path: &Path, mut file: Option<File>, screen: &mut Screen<'_>) -> Result<()> {
    let failed = failed(&path.display().to_string());
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        ticks.tick().await;
        let now = match std::fs::metadata(path) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        if let Some(open) = &mut file {
            // What was written before the rotation comes before the new file.
            screen.drain(open).map_err(&failed)??;
            let old = open.metadata().map_err(&failed)?;
            let place = open.stream_position().map_err(&failed)?;
            match &now {
                Some(now) if is_same(&old, now) && old.len() < place => {
                    open.rewind().map_err(&failed)?;
                }
                Some(now) if is_same(&old, now) => {}
                Some(_) => file = None,
                // Rotated away, or the VM is gone; a new file may come.
                None => {}
            }
        }
        if file.is_none() && now.is_some() {
            match File::open(path) {
                Ok(opened) => screen.drain(file.insert(opened)).map_err(&failed)??,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Moves to the start of the last `lines` lines; a last line without a line break counts. None moves nothing.
fn skip_to_last_lines(log: &mut (impl Read + Seek), lines: Option<usize>) -> io::Result<()> {
    let Some(lines) = lines else { return Ok(()) };
    let end = log.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(());
    }
    let mut start = end;
    let mut breaks = 0;
    let mut buffer = vec![0; PIECE];
    while start > 0 {
        let size = start.min(PIECE as u64);
        start -= size;
        let piece = &mut buffer[..size as usize];
        log.seek(SeekFrom::Start(start))?;
        log.read_exact(piece)?;
        for (index, byte) in piece.iter().enumerate().rev() {
            let place = start + index as u64;
            // The break at the very end closes the last line, it does not begin one.
            if *byte == b'\n' && place + 1 < end {
                breaks += 1;
                if breaks == lines {
                    log.seek(SeekFrom::Start(place + 1))?;
                    return Ok(());
                }
            }
        }
    }
    log.rewind()
}

/// Standard output, guarded if it is a terminal.
struct Screen<'a> {
    output: &'a Output,
    filter: Option<ConsoleFilter>,
}

impl<'a> Screen<'a> {
    fn new(output: &'a Output) -> Self {
        Screen {
            output,
            filter: io::stdout().is_terminal().then(ConsoleFilter::default),
        }
    }

    /// Writes all that is left of `log`. The outer error is of reading, the inner one of writing.
    fn drain(&mut self, log: &mut impl Read) -> io::Result<Result<()>> {
        let mut buffer = vec![0; PIECE];
        loop {
            let count = match log.read(&mut buffer) {
                Ok(0) => return Ok(Ok(())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let written = match &mut self.filter {
                Some(filter) => self.output.bytes(&filter.filter(&buffer[..count])),
                None => self.output.bytes(&buffer[..count]),
            };
            if let Err(failure) = written {
                return Ok(Err(failure));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(text: &str, lines: usize) -> String {
        let mut log = io::Cursor::new(text.as_bytes().to_vec());
        skip_to_last_lines(&mut log, Some(lines)).unwrap();
        let mut rest = String::new();
        log.read_to_string(&mut rest).unwrap();
        rest
    }

    #[test]
    fn finds_the_last_lines() {
        assert_eq!(last("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last("a\nb\nc", 2), "b\nc");
        assert_eq!(last("a\nb\n", 9), "a\nb\n");
        assert_eq!(last("a\nb\n", 0), "");
        assert_eq!(last("", 3), "");
        assert_eq!(last("\n\n\n", 1), "\n");
        let long = format!("{}\nlast\n", "x".repeat(3 * PIECE));
        assert_eq!(last(&long, 1), "last\n");
        assert_eq!(last(&long, 2), long);
    }

    proptest::proptest! {
        #[test]
        fn as_many_lines_as_asked(text in "[ab\n]{0,60}", lines in 0usize..8) {
            let all: Vec<&str> = text.split_inclusive('\n').collect();
            let expected = all[all.len().saturating_sub(lines)..].concat();
            proptest::prop_assert_eq!(last(&text, lines), expected);
        }
    }
}
