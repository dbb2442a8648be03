//! One layer as a stream: hashed, unpacked from its compression and hashed again, on two threads beside the reader.
//!
//! ```text
//!  file ─► SHA-256 ─► gzip, zstd ─┬─ pieces ─► the caller, as a Read
//!         (thread one)            └─ pieces ─► SHA-256 (thread two)
//! ```
//! What the caller reads is not to be trusted before `Running::finish` has compared both digests; so a layer is worked on while it is
//! verified, and what was made of it is thrown away when it fails. The bytes that come out are bounded, by a fixed limit and by
//! what came in.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use sha2::{Digest, Sha256};

use crate::digest;
use crate::{Error, Result};

/// Most bytes of one layer, unpacked.
pub(crate) const LAYER_LIMIT: u64 = 64 << 30;
/// Above this a layer may not be more than [`MOST_RATIO`] times its compressed size.
const RATIO_COUNTS_FROM: u64 = if cfg!(test) { 16 << 20 } else { 4 << 30 };
/// A file system's layer is some 2 to 5 times its compressed size; deflate can do 1032, zstd far more.
const MOST_RATIO: u64 = 200;
const PIECE: usize = 256 << 10;
/// Pieces on their way: bounds memory, and lets threads run ahead of each other a little.
const PIECES: usize = 16;

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    None,
    Gzip,
    Zstd,
}

/// What a layer has to be.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// SHA-256 of the file, in hexadecimal.
    pub(crate) packed: String,
    /// SHA-256 of what is in it.
    pub(crate) plain: String,
    pub(crate) packing: Packing,
}

type Piece = Arc<Vec<u8>>;

/// A layer that is being read.
pub(crate) struct Running<'scope> {
    unpacker: ScopedJoinHandle<'scope, io::Result<String>>,
    hasher: ScopedJoinHandle<'scope, String>,
    expected: Expected,
}

/// The bytes of a layer.
pub(crate) struct Plain {
    pieces: Receiver<Piece>,
    current: Piece,
    at: usize,
}

/// Begins to read a layer.
pub(crate) fn open<'scope>(
    scope: &'scope Scope<'scope, '_>,
    path: &Path,
    expected: Expected,
) -> Result<(Plain, Running<'scope>)> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let (to_caller, pieces) = sync_channel::<Piece>(PIECES);
    let (to_hasher, hashed) = sync_channel::<Piece>(PIECES);
    let packing = expected.packing;
    let unpacker = scope.spawn(move || unpack(file, packing, &to_caller, &to_hasher));
    let hasher = scope.spawn(move || {
        let mut hasher = Sha256::new();
        for piece in hashed {
            hasher.update(piece.as_slice());
        }
        digest::to_hex(&hasher.finalize())
    });
    let plain = Plain {
        pieces,
        current: Arc::new(Vec::new()),
        at: 0,
    };
    let running = Running {
        unpacker,
        hasher,
        expected,
    };
    Ok((plain, running))
}

/// How the reading of a layer ended.
pub(crate) enum Ending {
    /// All of it came, and is what it should be.
    Right,
    /// The caller stopped before the end.
    GivenUp,
    /// It is not what it should be, or can't be read.
    Wrong(Error),
}

impl Running<'_> {
    /// Compares what was read with what it should have been; `read` must have been read to its end, or be given up.
    pub(crate) fn finish(self, read: Plain) -> Ending {
        drop(read);
        let wrong = |problem: String| {
            let what = format!("the layer sha256:{}", self.expected.packed);
            Ending::Wrong(Error::malformed(what, problem))
        };
        let (Ok(packed), Ok(plain)) = (self.unpacker.join(), self.hasher.join()) else {
            return wrong("a thread that read it failed".to_owned());
        };
        match packed {
            Err(failure) if failure.kind() == io::ErrorKind::BrokenPipe => Ending::GivenUp,
            Err(failure) => wrong(failure.to_string()),
            Ok(packed) if packed != self.expected.packed => {
                wrong(format!("its content has the digest {packed}"))
            }
            Ok(_) if plain != self.expected.plain => wrong(format!(
                "unpacked it has the digest {plain}, and the image's configuration says {}",
                self.expected.plain
            )),
            Ok(_) => Ending::Right,
        }
    }
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.current.len() {
            match self.pieces.recv() {
                Ok(piece) => (self.current, self.at) = (piece, 0),
                // The end, or a failure, which finish() tells.
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len() - self.at);
        buffer[..count].copy_from_slice(&self.current[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Hashes and counts what is read from a file.
struct Counted<R> {
    inner: R,
    hasher: Sha256,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

/// Unpacks all of it; gives the digest of the file.
fn unpack(
    file: File,
    packing: Packing,
    to_caller: &SyncSender<Piece>,
    to_hasher: &SyncSender<Piece>,
) -> io::Result<String> {
    let mut packed = Counted {
        inner: file,
        hasher: Sha256::new(),
        count: 0,
    };
    match packing {
        Packing::None => pass(
            &mut packed,
            to_caller,
            to_hasher,
            |packed| packed,
            |packed| packed.count,
        )?,
        Packing::Gzip => {
            let mut decoder =
                flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(PIECE, &mut packed));
            pass(
                &mut decoder,
                to_caller,
                to_hasher,
                |decoder| decoder,
                |decoder| decoder.get_ref().get_ref().count,
            )?;
        }
        Packing::Zstd => {
            let mut source = BufReader::with_capacity(PIECE, &mut packed);
            // A layer may be several frames one after the other; the decoder reads one.
            while !io::BufRead::fill_buf(&mut source)?.is_empty() {
                let mut decoder = ruzstd::decoding::StreamingDecoder::new(&mut source)
                    .map_err(io::Error::other)?;
                pass(
                    &mut decoder,
                    to_caller,
                    to_hasher,
                    |decoder| decoder,
                    |decoder| decoder.get_ref().get_ref().count,
                )?;
            }
        }
    }
    // What lies behind the end counts for the digest.
    io::copy(&mut packed.by_ref().take(LAYER_LIMIT), &mut io::sink())?;
    Ok(digest::to_hex(&packed.hasher.finalize()))
}

/// Passes on what a decoder gives until its end; `count` says how much went in.
fn pass<D>(
    decoder: &mut D,
    to_caller: &SyncSender<Piece>,
    to_hasher: &SyncSender<Piece>,
    reader: impl Fn(&mut D) -> &mut dyn Read,
    count: impl Fn(&D) -> u64,
) -> io::Result<()> {
    let mut total = 0;
    loop {
        let mut piece = vec![0; PIECE];
        let mut filled = 0;
        while filled < PIECE {
            match reader(decoder).read(&mut piece[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return Ok(());
        }
        total += filled as u64;
        if total > LAYER_LIMIT {
            return Err(io::Error::other("unpacked it is larger than 64 GiB"));
        }
        if total > RATIO_COUNTS_FROM && total / MOST_RATIO > count(decoder) {
            return Err(io::Error::other(
                "it unpacks to more than 200 times its size",
            ));
        }
        piece.truncate(filled);
        let piece = Arc::new(piece);
        if to_hasher.send(Arc::clone(&piece)).is_err() || to_caller.send(piece).is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
}
