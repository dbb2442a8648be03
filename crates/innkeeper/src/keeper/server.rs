//! A keeper's socket: HTTP and JSON, the part of the REST API that is about one running VM.
//!
//! | route | answer |
//! |---|---|
//! | `GET /v1/vm` | `VmInfo`, from memory |
//! | `GET /v1/vm/watch` | `VmInfo`, one JSON line for each change, until the keeper ends |
//! | `GET /v1/vm/stats` | `VmStats` |
//! | `POST /v1/vm/start`, `stop`, `kill`, `restart`, `pause`, `resume`, `suspend` | when it is done; errors as `Problem` with their status |
//! | `POST /v1/vm/spec` | the new text is checked and written |
//! | `POST /v1/vm/apply` | the running machine is given what it can be given of it |
//! | `POST /v1/vm/agent` | switches to the agent's protocol |
//! | `POST /v1/vm/console/NAME`, `vsock/PORT`, `vsock/PORT/listen` | switches to the bytes of a console, of a connection to a guest's vsock port, of the next connection that the guest makes to a port of the host |
//!
//! Only the user who owns the VM reaches the socket: its directory is private.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::channel::Channel;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use innkeeper_api::{
    Accepted, ApplyOutcome, ApplyRequest, ErrorKind, KillRequest, PauseRequest, RestartRequest,
    ResumeRequest, StartRequest, StopOutcome, StopRequest, SuspendRequest, VmInfo, VmState,
    VmStats,
};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};

use super::actor::{Command, Door, SpecRequest};
use super::agent::AgentLink;
use crate::error::{Error, Result};

/// Name of the agent's protocol in an HTTP upgrade.
pub(crate) const AGENT_PROTOCOL: &str = "innkeeper-agent";
/// Name of a stream of plain bytes in an HTTP upgrade.
pub(crate) const BYTES_PROTOCOL: &str = "innkeeper-bytes";
/// How long a client waits for an agent that has not said hello: long enough for one whose keeper has just been replaced.
const AGENT_PATIENCE: Duration = Duration::from_secs(3);
/// A spec is the largest thing that is sent here.
const LARGEST_REQUEST: usize = 2 << 20;

/// What the routes reach.
#[derive(Clone)]
pub(crate) struct Shared {
    pub commands: mpsc::UnboundedSender<Command>,
    pub info: watch::Receiver<Arc<VmInfo>>,
    pub agent: watch::Receiver<Option<AgentLink>>,
}

pub(crate) fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/vm", get(info))
        .route("/v1/vm/watch", get(follow))
        .route("/v1/vm/stats", get(stats))
        .route("/v1/vm/start", post(start))
        .route("/v1/vm/stop", post(stop))
        .route("/v1/vm/kill", post(kill))
        .route("/v1/vm/restart", post(restart))
        .route("/v1/vm/pause", post(pause))
        .route("/v1/vm/resume", post(resume))
        .route("/v1/vm/suspend", post(suspend))
        .route("/v1/vm/spec", post(spec))
        .route("/v1/vm/apply", post(apply))
        .route("/v1/vm/agent", post(agent))
        .route("/v1/vm/console/{name}", post(console))
        .route("/v1/vm/vsock/{port}", post(vsock))
        .route("/v1/vm/vsock/{port}/listen", post(vsock_listen))
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(shared)
}

pub(crate) struct Refusal(pub(crate) Error);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0.to_problem())).into_response()
    }
}

type Answer<T> = std::result::Result<Json<T>, Refusal>;

/// Hands a command to the actor and waits for its reply.
async fn ask<T>(
    shared: &Shared,
    make: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
) -> Answer<T> {
    ask_plain(shared, make).await.map(Json)
}

async fn ask_plain<T>(
    shared: &Shared,
    make: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
) -> std::result::Result<T, Refusal> {
    let gone = || Refusal(Error::new(ErrorKind::Unreachable, "the keeper is ending"));
    let (reply, answer) = oneshot::channel();
    shared.commands.send(make(reply)).map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?.map_err(Refusal)
}

pub(crate) fn parse<T: DeserializeOwned>(body: &Bytes) -> std::result::Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        Refusal(
            Error::new(
                ErrorKind::BadInput,
                "the request is not what this route takes",
            )
            .with_source(error),
        )
    })
}

async fn info(State(shared): State<Shared>) -> Json<VmInfo> {
    // A keeper that is ending has nothing to look at any more: what it told last is so.
    let _ = ask_plain(&shared, Command::Look).await;
    Json(shared.info.borrow().as_ref().clone())
}

async fn follow(State(shared): State<Shared>) -> Response {
    let mut changes = shared.info.clone();
    let (mut sender, body) = Channel::<Bytes>::new(4);
    tokio::spawn(async move {
        loop {
            let told = changes.borrow_and_update().clone();
            let Ok(mut line) = serde_json::to_vec(told.as_ref()) else {
                return;
            };
            line.push(b'\n');
            if sender.send_data(line.into()).await.is_err() || changes.changed().await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    response
}

async fn stats(State(shared): State<Shared>) -> Answer<VmStats> {
    ask(&shared, Command::Stats).await
}

async fn start(State(shared): State<Shared>, body: Bytes) -> Answer<Accepted> {
    parse::<StartRequest>(&body)?;
    ask(&shared, Command::Start).await
}

async fn stop(State(shared): State<Shared>, body: Bytes) -> Answer<StopOutcome> {
    let request = parse::<StopRequest>(&body)?;
    ask(&shared, |reply| Command::Stop(request, reply)).await
}

async fn kill(State(shared): State<Shared>, body: Bytes) -> Answer<StopOutcome> {
    parse::<KillRequest>(&body)?;
    ask(&shared, Command::Kill).await
}

async fn restart(State(shared): State<Shared>, body: Bytes) -> Answer<StopOutcome> {
    let request = parse::<RestartRequest>(&body)?;
    ask(&shared, |reply| Command::Restart(request, reply)).await
}

async fn pause(State(shared): State<Shared>, body: Bytes) -> Answer<Accepted> {
    parse::<PauseRequest>(&body)?;
    ask(&shared, Command::Pause).await
}

async fn resume(State(shared): State<Shared>, body: Bytes) -> Answer<Accepted> {
    parse::<ResumeRequest>(&body)?;
    ask(&shared, Command::Resume).await
}

async fn suspend(State(shared): State<Shared>, body: Bytes) -> Answer<Accepted> {
    parse::<SuspendRequest>(&body)?;
    ask(&shared, Command::Suspend).await
}

async fn spec(State(shared): State<Shared>, body: Bytes) -> Answer<()> {
    let request = parse::<SpecRequest>(&body)?;
    ask(&shared, |reply| Command::Spec(request, reply)).await
}

async fn apply(State(shared): State<Shared>, body: Bytes) -> Answer<ApplyOutcome> {
    let request = parse::<ApplyRequest>(&body)?;
    ask(&shared, |reply| Command::Apply(request, reply)).await
}

async fn console(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    open(&shared, Door::Console(name), request).await
}

async fn vsock(State(shared): State<Shared>, Path(port): Path<u32>, request: Request) -> Response {
    open(&shared, Door::Vsock(port), request).await
}

async fn vsock_listen(
    State(shared): State<Shared>,
    Path(port): Path<u32>,
    request: Request,
) -> Response {
    open(&shared, Door::VsockListen(port), request).await
}

/// Joins the client to a stream into the guest.
async fn open(shared: &Shared, door: Door, request: Request) -> Response {
    if let Err(refusal) = must_ask_for(&request, BYTES_PROTOCOL) {
        return refusal.into_response();
    }
    let mut channel = match ask_plain(shared, |reply| Command::Open(door, reply)).await {
        Ok(channel) => channel,
        Err(refusal) => return refusal.into_response(),
    };
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            // However it ends, both ends are closed by it.
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(upgraded), &mut channel).await;
        }
    });
    switching_to(BYTES_PROTOCOL)
}

fn must_ask_for(request: &Request, protocol: &str) -> std::result::Result<(), Refusal> {
    let wanted = request
        .headers()
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok());
    if wanted == Some(protocol) {
        return Ok(());
    }
    Err(Refusal(Error::new(
        ErrorKind::BadInput,
        format!("this route needs `Upgrade: {protocol}`"),
    )))
}

fn switching_to(protocol: &'static str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response
        .headers_mut()
        .insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}

async fn agent(State(shared): State<Shared>, request: Request) -> Response {
    if let Err(refusal) = must_ask_for(&request, AGENT_PROTOCOL) {
        return refusal.into_response();
    }
    let Some(link) = shared.agent.borrow().clone() else {
        let name = shared.info.borrow().name.clone();
        return Refusal(
            Error::new(ErrorKind::Conflict, format!("{name} does not run"))
                .with_hint(format!("start it with `inn start {name}`")),
        )
        .into_response();
    };
    let (name, state) = {
        let info = shared.info.borrow();
        (info.name.clone(), info.state)
    };
    if matches!(
        state,
        VmState::Pausing | VmState::Paused | VmState::Suspending
    ) {
        return Refusal(
            Error::new(
                ErrorKind::Conflict,
                format!("{name} is {state}: nothing in it can answer"),
            )
            .with_hint(format!("continue it with `inn resume {name}`")),
        )
        .into_response();
    }
    let Some(channel) = link.reached(AGENT_PATIENCE).await else {
        let name = shared.info.borrow().name.clone();
        return Refusal(
            Error::new(
                ErrorKind::Unreachable,
                format!("the agent of {name} has not said hello"),
            )
            .with_hint(format!(
                "wait for it with `inn wait {name} --for ready`; see `inn logs --serial {name}`"
            )),
        )
        .into_response();
    };
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            AgentLink::relay(&channel, TokioIo::new(upgraded)).await;
        }
    });
    switching_to(AGENT_PROTOCOL)
}
