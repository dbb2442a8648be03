//! Downloads a file with a known digest: resumable, hashed while it is written, bounded, and whole or not there.
//!
//! ```text
//!   DIGEST.part + DIGEST.origin ──all bytes, digest right──► DIGEST   (renamed; the caller takes it away)
//!        ▲  └─ cut off: stays, the next call asks for the rest (Range, If-Range)
//!        └──── digest wrong: removed; if it was resumed, one more try from the start
//! ```
//! `http`, `https` and `file` addresses are known. The digest decides what is kept, so neither the server nor what it was
//! resumed from is trusted.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::catalogue::{self, Entry};
use crate::digest::Hasher;
use crate::progress::{Context, Step};
use crate::{Error, Result, atomic};

/// Largest file that is received.
const SIZE_LIMIT: u64 = 128 << 30;
/// Largest list of checksums.
const LIST_LIMIT: u64 = 8 << 20;
/// Connections for one file while each brings bytes.
const CONNECTIONS: u32 = 8;

/// What to download where.
pub(crate) struct Download<'a> {
    /// The address.
    pub(crate) url: &'a str,
    /// SHA-256 or SHA-512 in hexadecimal.
    pub(crate) expected: &'a str,
    /// Where the file and its parts lie.
    pub(crate) directory: &'a Path,
    /// Its size, where it was promised: more is not received.
    pub(crate) size: Option<u64>,
    /// How the server is asked; by a plain request of `url` if none is given.
    pub(crate) source: Option<&'a dyn Source>,
}

/// Asks a server that wants more than an address.
pub(crate) trait Source {
    /// Asks for the bytes from `have` on, naming the content by its validator.
    fn open(&self, url: &str, have: u64, validator: Option<&str>) -> Result<Answer>;
}

/// Bytes of an answer.
pub(crate) struct Answer {
    /// At which byte of the file they begin.
    start: u64,
    /// Length of the whole file, where told.
    total: Option<u64>,
    /// Names this content for If-Range.
    validator: Option<String>,
    body: Box<dyn Read>,
}

/// Downloads and verifies; gives the finished file, which is the caller's.
pub(crate) fn fetch(download: &Download<'_>, context: &Context) -> Result<PathBuf> {
    let expected = download.expected.to_ascii_lowercase();
    Hasher::for_hex(&expected)?;
    let done = download.directory.join(&expected);
    let part = done.with_extension("part");
    let origin = done.with_extension("origin");
    let _lock = atomic::lock_patiently(&done.with_extension("lock"), context, download.url)?;
    if done.is_file() {
        return Ok(done);
    }
    let mut resumed = part.metadata().is_ok_and(|metadata| metadata.len() > 0);
    loop {
        let actual = receive(download, &part, &origin, context)?;
        if actual == expected {
            fs::rename(&part, &done).map_err(Error::io("rename to", &done))?;
            let _ = fs::remove_file(&origin);
            return Ok(done);
        }
        fs::remove_file(&part).map_err(Error::io("remove", &part))?;
        let _ = fs::remove_file(&origin);
        if !resumed {
            return Err(Error::Checksum {
                url: download.url.to_owned(),
                expected,
                actual,
            });
        }
        resumed = false;
    }
}

/// Receives until all is there; gives the digest of the part. On a cut connection that brought bytes it connects again.
fn receive(
    download: &Download<'_>,
    part: &Path,
    origin: &Path,
    context: &Context,
) -> Result<String> {
    let mut connections = 0;
    loop {
        connections += 1;
        let before = part.metadata().map_or(0, |metadata| metadata.len());
        match receive_once(download, part, origin, context) {
            Err(Error::Truncated { received, .. })
                if received > before && connections < CONNECTIONS =>
            {
                context.step(Step::Download, "the connection ended early; going on");
            }
            other => return other,
        }
    }
}

fn receive_once(
    download: &Download<'_>,
    part: &Path,
    origin: &Path,
    context: &Context,
) -> Result<String> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(part)
        .map_err(Error::io("open", part))?;
    let have = file.metadata().map_err(Error::io("look at", part))?.len();
    let validator = fs::read_to_string(origin)
        .ok()
        .filter(|text| !text.is_empty() && text.len() < 1024);
    context.step(Step::Download, format!("connecting to {}", download.url));
    let mut answer = match download.source {
        Some(source) => source.open(download.url, have, validator.as_deref())?,
        None => open(download.url, have, validator.as_deref())?,
    };
    let limit = download.size.unwrap_or(SIZE_LIMIT);
    if let (Some(promised), Some(total)) = (download.size, answer.total)
        && promised != total
    {
        return Err(failed(
            download.url,
            format!("the server has {total} bytes where {promised} were promised"),
        ));
    }
    if answer.total.is_some_and(|total| total > limit) {
        return Err(too_large(download.url));
    }
    if answer.start != have && answer.start != 0 {
        return Err(failed(
            download.url,
            format!(
                "the server sent bytes from {} when asked for those from {have}",
                answer.start
            ),
        ));
    }
    let mut hasher = Hasher::for_hex(download.expected)?;
    if have == 0 {
        // Nothing to hash and nothing to throw away.
    } else if answer.start == 0 {
        file.set_len(0).map_err(Error::io("truncate", part))?;
    } else {
        // Hashed again from the disk, and so left with the position at its end.
        hash_existing(&mut file, part, &mut hasher, context)?;
    }
    fs::write(origin, answer.validator.as_deref().unwrap_or_default())
        .map_err(Error::io("write", origin))?;
    let mut received = answer.start;
    let mut buffer = vec![0; 256 << 10];
    let mut told = 0;
    loop {
        context.check()?;
        let count = match answer.body.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            // Cut off: how much is missing is what matters, and the same for all reasons.
            Err(_) => {
                return Err(Error::Truncated {
                    url: download.url.into(),
                    received,
                    expected: answer.total.unwrap_or(received + 1),
                });
            }
        };
        received += count as u64;
        if received > limit {
            // Of no use: the whole would be too large too.
            let _ = fs::remove_file(part);
            let _ = fs::remove_file(origin);
            return Err(too_large(download.url));
        }
        hasher.update(&buffer[..count]);
        if let Err(failure) = file.write_all(&buffer[..count]) {
            // A full disk: what is here would only keep it full.
            let _ = fs::remove_file(part);
            let _ = fs::remove_file(origin);
            return Err(Error::io("write", part)(failure));
        }
        if received - told >= 1 << 20 {
            told = received;
            context.bytes(Step::Download, received, answer.total, "downloading");
        }
    }
    if let Some(total) = answer.total
        && received < total
    {
        return Err(Error::Truncated {
            url: download.url.into(),
            received,
            expected: total,
        });
    }
    file.sync_all().map_err(Error::io("flush", part))?;
    context.bytes(Step::Download, received, Some(received), "downloaded");
    Ok(hasher.hex())
}

fn hash_existing(
    file: &mut File,
    path: &Path,
    hasher: &mut Hasher,
    context: &Context,
) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        context.check()?;
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => return Ok(()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

pub(crate) fn failed(url: &str, problem: impl Into<String>) -> Error {
    Error::Download {
        url: url.to_owned(),
        problem: problem.into(),
    }
}

fn too_large(url: &str) -> Error {
    failed(url, "it is larger than was promised, or over 128 GiB")
}

fn open(url: &str, have: u64, validator: Option<&str>) -> Result<Answer> {
    if let Some(path) = url.strip_prefix("file://") {
        let path = Path::new(path);
        let file = File::open(path).map_err(Error::io("open", path))?;
        let total = file.metadata().map_err(Error::io("look at", path))?.len();
        return Ok(Answer {
            start: 0,
            total: Some(total),
            validator: None,
            body: Box::new(file),
        });
    }
    let agent = agent();
    let response = get(&agent, url, have, validator)
        .call()
        .map_err(|failure| failed(url, failure.to_string()))?;
    read_answer(url, have, response)
}

/// Prepares a request for the bytes from `have` on.
pub(crate) fn get(
    agent: &ureq::Agent,
    url: &str,
    have: u64,
    validator: Option<&str>,
) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
        if let Some(validator) = validator {
            request = request.header("If-Range", validator);
        }
    }
    request
}

/// Says what a server's answer to [`get`] brings.
pub(crate) fn read_answer(
    url: &str,
    have: u64,
    response: ureq::http::Response<ureq::Body>,
) -> Result<Answer> {
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    // A weak validator must not be used with ranges (RFC 9110, 13.1.5).
    let validator = header("etag").filter(|etag| !etag.starts_with("W/"));
    let length = header("content-length").and_then(|value| value.parse::<u64>().ok());
    match response.status().as_u16() {
        200 => Ok(Answer {
            start: 0,
            total: length,
            validator,
            body: Box::new(response.into_body().into_reader()),
        }),
        206 => {
            let range = header("content-range")
                .ok_or_else(|| failed(url, "a partial answer without Content-Range"))?;
            let (start, total) = content_range(&range)
                .ok_or_else(|| failed(url, format!("the Content-Range {range:?}")))?;
            let total = total.or_else(|| length.and_then(|length| start.checked_add(length)));
            Ok(Answer {
                start,
                total,
                validator,
                body: Box::new(response.into_body().into_reader()),
            })
        }
        // Nothing lies behind what is here: it is whole or from another file, which the digest will tell.
        416 if have > 0 => Ok(Answer {
            start: have,
            total: Some(have),
            validator: None,
            body: Box::new(std::io::empty()),
        }),
        404 | 410 => Err(failed(url, "the server does not have it")),
        status => Err(failed(
            url,
            format!("the server answered with status {status}"),
        )),
    }
}

/// Parses `bytes 5-9/10`; the total may be `*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
    let total = if total == "*" {
        None
    } else {
        Some(total.parse().ok()?)
    };
    (start <= end && total.is_none_or(|total| end < total)).then_some((start, total))
}

pub(crate) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .user_agent("innkeeper")
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        // There is no limit per read; a body that stalls ends here and is resumed.
        .timeout_recv_body(Some(Duration::from_secs(3600)))
        .build()
        .into()
}

/// The digest of a catalogue's entry: pinned, or from the vendor's list.
pub(crate) fn expected_digest(entry: &Entry, context: &Context) -> Result<String> {
    if let Some(pinned) = entry.sha512.as_ref().or(entry.sha256.as_ref()) {
        return Ok(pinned.clone());
    }
    let list_url = entry
        .checksums
        .as_deref()
        .ok_or_else(|| failed(&entry.url, "the catalogue has no checksum for it"))?;
    context.step(Step::Resolve, format!("reading {list_url}"));
    let mut list = Vec::new();
    let answer = open(list_url, 0, None)?;
    answer
        .body
        .take(LIST_LIMIT)
        .read_to_end(&mut list)
        .map_err(|failure| failed(list_url, failure.to_string()))?;
    let file_name = entry.url.rsplit('/').next().unwrap_or_default();
    catalogue::find_checksum(&String::from_utf8_lossy(&list), file_name).ok_or_else(|| {
        failed(
            &entry.url,
            format!("{list_url} has no checksum for {file_name}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::sha256_hex;
    use crate::progress::Silent;
    use proptest::prelude::*;
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::thread::JoinHandle;

    /// Answers the given number of connections; `cut` makes an answer end early.
    struct Server {
        url: String,
        thread: JoinHandle<Vec<String>>,
    }

    fn serve(content: Vec<u8>, cuts: Vec<Option<usize>>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/disk.raw", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            cuts.into_iter()
                .map(|cut| answer(&listener.accept().unwrap().0, &content, cut))
                .collect()
        });
        Server { url, thread }
    }

    fn answer(stream: &TcpStream, content: &[u8], cut: Option<usize>) -> String {
        let mut range = String::new();
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: ") {
                range = value.to_owned();
            }
        }
        let start = range
            .strip_prefix("bytes=")
            .map_or(0, |value| value.trim_end_matches('-').parse().unwrap());
        let body = &content[start..];
        let status = if start > 0 {
            format!(
                "206 Partial\r\nContent-Range: bytes {start}-{}/{}",
                content.len() - 1,
                content.len()
            )
        } else {
            "200 OK".into()
        };
        let mut stream = stream;
        write!(
            stream,
            "HTTP/1.1 {status}\r\nETag: \"v1\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        )
        .unwrap();
        // The client may have hung up already.
        let _ = stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())]);
        range
    }

    fn try_fetch(url: &str, expected: &str, directory: &Path) -> Result<PathBuf> {
        fetch(
            &Download {
                url,
                expected,
                directory,
                size: None,
                source: None,
            },
            &Context::new(Arc::new(Silent)),
        )
    }

    fn files(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| !name.ends_with(".lock"));
        names.sort();
        names
    }

    #[test]
    fn a_cut_connection_is_resumed_and_the_result_verified() {
        let directory = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let expected = sha256_hex(&content);
        let server = serve(content.clone(), vec![Some(40_000), None]);
        let path = try_fetch(&server.url, &expected, directory.path()).unwrap();
        assert_eq!(fs::read(path).unwrap(), content);
        assert_eq!(files(directory.path()), [expected]);
        assert_eq!(server.thread.join().unwrap(), ["", "bytes=40000-"]);
    }

    #[test]
    fn a_truncated_download_is_told_and_goes_on_in_the_next_run() {
        let directory = tempfile::tempdir().unwrap();
        let content = vec![5; 50_000];
        let expected = sha256_hex(&content);
        let server = serve(content.clone(), vec![Some(20_000), Some(0)]);
        let failure = try_fetch(&server.url, &expected, directory.path()).unwrap_err();
        assert!(
            failure
                .to_string()
                .contains("ended after 20000 of 50000 bytes"),
            "{failure}"
        );
        server.thread.join().unwrap();
        assert_eq!(
            files(directory.path()),
            [format!("{expected}.origin"), format!("{expected}.part")]
        );
        let server = serve(content, vec![None]);
        try_fetch(&server.url, &expected, directory.path()).unwrap();
        assert_eq!(server.thread.join().unwrap(), ["bytes=20000-"]);
    }

    #[test]
    fn a_wrong_checksum_keeps_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let server = serve(vec![1; 1000], vec![None]);
        let failure = try_fetch(&server.url, &sha256_hex(b"other"), directory.path()).unwrap_err();
        assert!(matches!(failure, Error::Checksum { .. }), "{failure}");
        assert!(files(directory.path()).is_empty());
        server.thread.join().unwrap();
    }

    #[test]
    fn a_damaged_part_is_thrown_away_and_fetched_anew() {
        let directory = tempfile::tempdir().unwrap();
        let content = vec![9; 3000];
        let expected = sha256_hex(&content);
        fs::write(directory.path().join(format!("{expected}.part")), [0; 1000]).unwrap();
        let server = serve(content, vec![None, None]);
        try_fetch(&server.url, &expected, directory.path()).unwrap();
        assert_eq!(server.thread.join().unwrap(), ["bytes=1000-", ""]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_told_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let content = vec![3; 5000];
        let expected = sha256_hex(&content);
        // Every write to /dev/full fails with ENOSPC.
        std::os::unix::fs::symlink(
            "/dev/full",
            directory.path().join(format!("{expected}.part")),
        )
        .unwrap();
        let server = serve(content, vec![None]);
        let failure = try_fetch(&server.url, &expected, directory.path()).unwrap_err();
        assert_eq!(failure.kind(), crate::ErrorKind::NoSpace, "{failure}");
        assert!(files(directory.path()).is_empty());
        server.thread.join().unwrap();
    }

    #[test]
    fn a_server_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        drop(listener);
        let failure = try_fetch(&url, &sha256_hex(b""), directory.path()).unwrap_err();
        assert!(
            failure
                .to_string()
                .starts_with(&format!("cannot download {url}")),
            "{failure}"
        );
    }

    proptest! {
        #[test]
        fn content_ranges_never_panic(text in "(bytes )?[0-9*/ -]{0,60}") {
            content_range(&text);
        }
    }
}
