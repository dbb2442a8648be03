//! Just enough of HTTP/1.1: one request and one answer for each connection.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// Most that a request may be, in bytes; the real one takes as much.
const LIMIT: usize = 4 << 20;

/// A request.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub body: Vec<u8>,
}

/// Reads a request; none if the connection closes before one came.
pub fn read(stream: &mut UnixStream) -> io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let mut lines = head.split("\r\n");
            let mut first = lines.next().unwrap_or_default().split(' ');
            let (method, path) = (
                first.next().unwrap_or_default(),
                first.next().unwrap_or_default(),
            );
            let length = lines
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .and_then(|(_, value)| value.trim().parse::<usize>().ok())
                .unwrap_or(0);
            let mut body = bytes.split_off(end + 4);
            while body.len() < length && body.len() < LIMIT {
                let count = stream.read(&mut piece)?;
                if count == 0 {
                    return Ok(None);
                }
                body.extend_from_slice(&piece[..count]);
            }
            return Ok(Some(Request {
                method: method.to_owned(),
                path: path.to_owned(),
                body,
            }));
        }
        let count = stream.read(&mut piece)?;
        if count == 0 || bytes.len() > LIMIT {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece[..count]);
    }
}

/// Writes an answer, with the headers that the real one writes.
pub fn answer(stream: &mut UnixStream, status: u16, body: &str) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status} \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
    )?;
    if !body.is_empty() || status != 204 {
        write!(
            stream,
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        )?;
    }
    write!(stream, "\r\n{body}")
}
