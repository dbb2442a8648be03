//! The other end of a keeper's socket, and of others like it: HTTP and JSON over a unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use innkeeper_api::{ErrorKind, Problem, VmInfo};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::actor::Door;
use super::server::{AGENT_PROTOCOL, BYTES_PROTOCOL};
use crate::error::{Error, Result};

/// No answer of a keeper is larger than this.
const LARGEST_ANSWER: usize = 4 << 20;
/// A keeper answers reads from memory; one that takes longer hangs.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A way to one VM's keeper. Each request has a connection of its own.
#[derive(Debug, Clone)]
pub(crate) struct KeeperClient {
    /// What listens: a keeper or a netd.
    who: &'static str,
    name: String,
    socket: PathBuf,
}

impl KeeperClient {
    pub(crate) fn new(name: &str, socket: PathBuf) -> Self {
        KeeperClient::of("keeper", name, socket)
    }

    /// Makes the way to a process of ours that listens in a keeper's manner.
    pub(crate) fn of(who: &'static str, name: &str, socket: PathBuf) -> Self {
        KeeperClient {
            who,
            name: name.to_owned(),
            socket,
        }
    }

    /// Reads what the keeper tells of its VM. Errors: `Unreachable` if no keeper listens, `TimedOut` if it does not answer.
    pub(crate) async fn info(&self) -> Result<VmInfo> {
        self.read("/v1/vm").await
    }

    /// Reads one thing.
    pub(crate) async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let request = self.request(Method::GET, path, Bytes::new())?;
        match tokio::time::timeout(READ_TIMEOUT, self.answer(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!("the {} of {} does not answer", self.who, self.name),
            )),
        }
    }

    /// Asks for something and waits until it is done.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(error))?;
        self.answer(self.request(Method::POST, path, body.into())?)
            .await
    }

    /// Follows the VM: each change of what is told of it, until the keeper ends.
    pub(crate) async fn watch(&self) -> Result<Watch> {
        let response = self
            .send(self.request(Method::GET, "/v1/vm/watch", Bytes::new())?)
            .await?;
        Ok(Watch {
            name: self.name.clone(),
            body: self.checked(response).await?.into_body(),
            buffer: Vec::new(),
        })
    }

    /// Asks for something that is kept as long as the answer is read.
    pub(crate) async fn hold(&self, path: &str, body: &impl Serialize) -> Result<Held> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(error))?;
        let response = self
            .send(self.request(Method::POST, path, body.into())?)
            .await?;
        Ok(Held {
            body: self.checked(response).await?.into_body(),
        })
    }

    /// Opens the byte stream that carries the agent's protocol.
    pub(crate) async fn agent_stream(&self) -> Result<TokioIo<Upgraded>> {
        self.stream("/v1/vm/agent", AGENT_PROTOCOL).await
    }

    /// Opens the byte stream of a console or of a vsock port.
    pub(crate) async fn open(&self, door: &Door) -> Result<TokioIo<Upgraded>> {
        let path = match door {
            Door::Console(name) => format!("/v1/vm/console/{name}"),
            Door::Vsock(port) => format!("/v1/vm/vsock/{port}"),
            Door::VsockListen(port) => format!("/v1/vm/vsock/{port}/listen"),
        };
        self.stream(&path, BYTES_PROTOCOL).await
    }

    async fn stream(&self, path: &str, protocol: &'static str) -> Result<TokioIo<Upgraded>> {
        let mut request = self.request(Method::POST, path, Bytes::new())?;
        request.headers_mut().insert(
            CONNECTION,
            hyper::header::HeaderValue::from_static("upgrade"),
        );
        request
            .headers_mut()
            .insert(UPGRADE, hyper::header::HeaderValue::from_static(protocol));
        let response = self.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            self.checked(response).await?;
            return Err(self.broken("it did not switch protocols"));
        }
        Ok(TokioIo::new(
            hyper::upgrade::on(response)
                .await
                .map_err(|error| self.broken(error))?,
        ))
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
        Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "keeper")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let stream = connect(&self.socket).await.map_err(|error| {
            Error::new(
                ErrorKind::Unreachable,
                format!("no {} of {} listens", self.who, self.name),
            )
            .with_source(error)
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        tokio::spawn(connection.with_upgrades());
        sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(error))
    }

    async fn checked(&self, response: Response<Incoming>) -> Result<Response<Incoming>> {
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.collect(response).await?;
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(Error::from_problem(problem)),
            Err(_) => Err(self.broken(format!("it answered {status}"))),
        }
    }

    async fn answer<T: DeserializeOwned>(&self, request: Request<Full<Bytes>>) -> Result<T> {
        let response = self.checked(self.send(request).await?).await?;
        let body = self.collect(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.broken(error))
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes> {
        let body = Limited::new(response.into_body(), LARGEST_ANSWER);
        Ok(body
            .collect()
            .await
            .map_err(|error| self.broken(error))?
            .to_bytes())
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::new(
            ErrorKind::Unreachable,
            format!("the connection to the {} of {} broke", self.who, self.name),
        )
        .with_source(source)
    }
}

async fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    UnixStream::connect(socket).await
}

/// Something that is kept until this is dropped.
pub(crate) struct Held {
    body: Incoming,
}

impl Held {
    /// Returns when it is not kept any more: its keeper is gone.
    pub(crate) async fn until_gone(mut self) {
        while let Some(Ok(_)) = self.body.frame().await {}
    }
}

/// Changes of one VM, one after the other.
pub(crate) struct Watch {
    name: String,
    body: Incoming,
    buffer: Vec<u8>,
}

impl Watch {
    /// Returns the next thing that is told; none when the keeper has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<VmInfo>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(|error| {
                    Error::new(
                        ErrorKind::Failure,
                        format!("the keeper of {} said something else", self.name),
                    )
                    .with_source(error)
                });
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                    if self.buffer.len() > LARGEST_ANSWER {
                        return Err(Error::new(
                            ErrorKind::Failure,
                            format!("the keeper of {} says too much", self.name),
                        ));
                    }
                }
                // However the stream ends, the files say what became of the VM.
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}
