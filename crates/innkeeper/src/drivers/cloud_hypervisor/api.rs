//! Cloud Hypervisor's control socket: HTTP and JSON over a unix socket, one connection for each call.
//!
//! The server carries out one call at a time, so a call that stalls makes every later one wait, a ping too. Hence each call has a
//! deadline and a connection of its own, and nothing that must not wait (killing, above all) goes this way. Its errors have three
//! shapes: an array of sentences, the outer first; an object with `error`; nothing. Its status codes say little: "not running" is 500.
//! Source: `vmm/src/api/openapi/cloud-hypervisor.yaml` and `vmm/src/api/http/mod.rs` of Cloud Hypervisor.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use innkeeper_api::ErrorKind;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::error::Error;

/// No answer is larger than this.
const LARGEST_ANSWER: usize = 4 << 20;

/// Most sentences of an error that are told, and the most characters of each.
const SENTENCES: (usize, usize) = (8, 400);

/// Why a call was not answered as wanted.
#[derive(Debug)]
pub(super) enum ApiError {
    /// The socket can't be connected to.
    Connect(io::Error),
    /// There was no answer in time.
    Deadline(Duration),
    /// The connection ended before the answer was whole: usually the hypervisor is ending.
    Closed(Box<dyn std::error::Error + Send + Sync>),
    /// The answer is not what the interface says.
    Protocol(String),
    /// The call was refused.
    Refused {
        /// HTTP status.
        status: u16,
        /// What was said, the outermost first; may be empty.
        sentences: Vec<String>,
    },
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiError::Connect(_) => f.write_str("its control socket can't be connected to"),
            ApiError::Deadline(after) => {
                write!(f, "it did not answer within {} s", after.as_secs_f32())
            }
            ApiError::Closed(_) => f.write_str("it closed the connection without an answer"),
            ApiError::Protocol(what) => write!(f, "its answer can't be read: {what}"),
            ApiError::Refused { status, sentences } if sentences.is_empty() => {
                write!(f, "it refused without a reason (status {status})")
            }
            ApiError::Refused { sentences, .. } => f.write_str(&sentences.join(": ")),
        }
    }
}

impl std::error::Error for ApiError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ApiError::Connect(error) => Some(error),
            ApiError::Closed(error) => Some(error.as_ref()),
            _ => None,
        }
    }
}

impl ApiError {
    /// Returns the kind of library error that this is.
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            ApiError::Connect(_) | ApiError::Closed(_) => ErrorKind::Unreachable,
            ApiError::Deadline(_) => ErrorKind::TimedOut,
            ApiError::Refused {
                status: 429 | 409, ..
            } => ErrorKind::Conflict,
            ApiError::Protocol(_) | ApiError::Refused { .. } => ErrorKind::Failure,
        }
    }

    /// Makes an error of the library that says what was being done.
    pub(super) fn while_doing(self, what: impl Into<String>) -> Error {
        Error::new(self.kind(), what).with_source(self)
    }

    /// Says whether one of the sentences of a refusal holds these words.
    pub(super) fn says(&self, words: &str) -> bool {
        matches!(self, ApiError::Refused { sentences, .. } if sentences.iter().any(|sentence| sentence.contains(words)))
    }
}

/// A way to one hypervisor's control socket.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: impl Into<PathBuf>) -> Self {
        Client {
            socket: socket.into(),
        }
    }

    /// Reads one thing.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        endpoint: &str,
        deadline: Duration,
    ) -> Result<T, ApiError> {
        let answer = self
            .call(Method::GET, endpoint, Bytes::new(), deadline)
            .await?;
        serde_json::from_slice(&answer).map_err(|error| ApiError::Protocol(error.to_string()))
    }

    /// Asks for something that takes no argument.
    pub(super) async fn put(&self, endpoint: &str, deadline: Duration) -> Result<(), ApiError> {
        self.call(Method::PUT, endpoint, Bytes::new(), deadline)
            .await
            .map(drop)
    }

    /// Asks for something.
    pub(super) async fn put_json(
        &self,
        endpoint: &str,
        body: &impl Serialize,
        deadline: Duration,
    ) -> Result<(), ApiError> {
        let body =
            serde_json::to_vec(body).map_err(|error| ApiError::Protocol(error.to_string()))?;
        self.call(Method::PUT, endpoint, body.into(), deadline)
            .await
            .map(drop)
    }

    async fn call(
        &self,
        method: Method,
        endpoint: &str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, ApiError> {
        // Dropping the future closes the connection; what the server was asked it carries out all the same.
        match tokio::time::timeout(deadline, self.exchange(method, endpoint, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ApiError::Deadline(deadline)),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        endpoint: &str,
        body: Bytes,
    ) -> Result<Bytes, ApiError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(ApiError::Connect)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ApiError::Closed(error.into()))?;
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{endpoint}"))
            .header(HOST, "localhost")
            .header(ACCEPT, "*/*")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ApiError::Protocol(error.to_string()))?;
        let exchange = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| ApiError::Closed(error.into()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST_ANSWER)
                .collect()
                .await
                .map_err(ApiError::Closed)?
                .to_bytes();
            if status.is_success() {
                return Ok(body);
            }
            Err(ApiError::Refused {
                status: status.as_u16(),
                sentences: sentences(&body),
            })
        };
        tokio::pin!(exchange);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            // It only moves bytes; what became of them is told by the exchange.
            _ = connection => exchange.await,
        }
    }
}

/// Reads the body of a refusal, whichever shape it has. It may repeat what a guest or a file says, so it is cut and cleaned.
fn sentences(body: &[u8]) -> Vec<String> {
    let found: Vec<String> = match serde_json::from_slice(body) {
        Ok(Value::Array(list)) => list
            .into_iter()
            .map(|entry| match entry {
                Value::String(text) => text,
                other => other.to_string(),
            })
            .collect(),
        Ok(Value::Object(map)) => match map.get("error") {
            Some(Value::String(text)) => vec![text.clone()],
            _ => vec![Value::Object(map).to_string()],
        },
        Ok(Value::String(text)) => vec![text],
        Ok(_) => Vec::new(),
        Err(_) => vec![String::from_utf8_lossy(body).into_owned()],
    };
    found
        .iter()
        .map(|sentence| {
            let cleaned: String = sentence
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .take(SENTENCES.1)
                .collect();
            cleaned.trim().to_owned()
        })
        .filter(|sentence| !sentence.is_empty() && sentence != "Error from API")
        .take(SENTENCES.0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_shapes_of_an_error_are_read() {
        let chain = br#"["Error from API","The VM could not boot","Cannot open the disk path"]"#;
        assert_eq!(
            sentences(chain),
            ["The VM could not boot", "Cannot open the disk path"]
        );
        assert_eq!(sentences(br#"{"error":"Bad Request"}"#), ["Bad Request"]);
        assert_eq!(sentences(b""), Vec::<String>::new());
        assert_eq!(sentences(b"null"), Vec::<String>::new());
        assert_eq!(sentences(b"no\x1bJSON"), ["no JSON"]);
        assert_eq!(sentences(br#"[{"a":1}]"#), [r#"{"a":1}"#]);
    }

    #[test]
    fn an_error_is_bounded() {
        let long = serde_json::to_vec(&vec!["é".repeat(10_000); 100]).unwrap();
        let read = sentences(&long);
        assert_eq!(read.len(), SENTENCES.0);
        assert!(
            read.iter()
                .all(|sentence| sentence.chars().count() <= SENTENCES.1)
        );
    }

    #[test]
    fn a_pending_change_is_a_conflict() {
        let refused = |status| ApiError::Refused {
            status,
            sentences: vec!["busy".to_owned()],
        };
        assert_eq!(refused(429).kind(), ErrorKind::Conflict);
        assert_eq!(refused(500).kind(), ErrorKind::Failure);
        assert!(refused(500).says("bus"));
    }
}
