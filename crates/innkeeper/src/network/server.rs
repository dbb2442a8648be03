//! A netd's socket: HTTP and JSON.
//!
//! | route | answer |
//! |---|---|
//! | `GET /v1/network` | `NetworkInfo` |
//! | `POST /v1/network/port` | a line when the port is there, then nothing; it is held until the asker closes |
//! | `POST /v1/network/shape` | when the port is shaped |
//! | `POST /v1/network/end` | netd ends; refused while it has ports |

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::channel::Channel;
use hyper::body::Bytes;
use innkeeper_api::{ErrorKind, NetworkInfo, NetworkPort, PortRequest, ShapeRequest};
use innkeeper_net::MacAddr;
use innkeeper_net::io::{Handle, Network, Target};
use innkeeper_net::switch::{Direction, DropReason, FloodLimit, PortConfig, PortId};
use tokio::sync::Notify;

use super::shape;
use super::store::NetworkDirectory;
use crate::error::{Error, Result};
use crate::keeper::{Refusal, parse};

const LARGEST_REQUEST: usize = 64 * 1024;
/// How many frames to many a guest may send in a second: far more than any protocol needs, far less than what would keep the host busy.
const FLOOD: FloodLimit = FloodLimit {
    per_second: 20_000,
    burst: 20_000,
};
/// How often a holder is looked after, and ports that nobody needs are taken away.
const TICK: Duration = Duration::from_secs(1);
/// After this all VMs that run have asked a new netd for their ports.
const RETURN: Duration = Duration::from_secs(5);
/// A netd without ports ends after this.
const IDLE: Duration = Duration::from_secs(3);

type Key = (String, u32);

struct Port {
    id: PortId,
    mac: String,
    socket: String,
    /// How many hold it.
    holders: u32,
}

/// What the routes reach.
#[derive(Clone)]
pub(super) struct Shared {
    directory: Arc<NetworkDirectory>,
    network: Arc<Handle>,
    ports: Arc<Mutex<BTreeMap<Key, Port>>>,
    /// What ports are shaped to, as `shapes.json` has it: a netd that was killed is not to make links good.
    shapes: Arc<Mutex<Vec<ShapeRequest>>>,
    began: Instant,
    end: Arc<Notify>,
}

type Answer<T> = std::result::Result<Json<T>, Refusal>;

impl Shared {
    pub(super) fn new(directory: NetworkDirectory, network: Handle) -> Result<Self> {
        let shapes = directory.shapes()?;
        Ok(Shared {
            directory: Arc::new(directory),
            network: Arc::new(network),
            ports: Arc::default(),
            shapes: Arc::new(Mutex::new(shapes)),
            began: Instant::now(),
            end: Arc::default(),
        })
    }

    fn ports(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Port>> {
        // What a panicking task held is a map that is whole.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the switch's thread. It answers within a batch's time.
    fn ask<T: Send + 'static>(
        &self,
        function: impl FnOnce(&mut Network) -> T + Send + 'static,
    ) -> Result<T> {
        self.network.ask(function).map_err(|error| {
            Error::new(ErrorKind::Failure, "the switch has ended").with_source(error)
        })
    }

    /// Makes the port of an interface if it is not there, and counts who holds it.
    fn hold(&self, request: &PortRequest) -> Result<Key> {
        let mac: MacAddr = request
            .mac
            .parse()
            .map_err(|error| Error::new(ErrorKind::BadInput, format!("mac: {error}")))?;
        let key = (request.vm.clone(), request.interface);
        let mut ports = self.ports();
        if let Some(port) = ports.get_mut(&key) {
            if port.socket == request.socket && port.mac == request.mac {
                port.holders += 1;
                return Ok(key);
            }
            let id = port.id;
            ports.remove(&key);
            // It was another machine's of that name.
            let _ = self.ask(move |network| network.remove(id))?;
        }
        let config = PortConfig {
            source: Some(mac.into()),
            flood_limit: Some(FLOOD),
            ..PortConfig::default()
        };
        let target = Target::Dial(PathBuf::from(&request.socket));
        let id = self
            .ask(move |network| network.add(config, target))?
            .map_err(|error| {
                Error::new(
                    ErrorKind::Failure,
                    format!("can't add a port for {}", request.vm),
                )
                .with_source(error)
            })?;
        let port = Port {
            id,
            mac: request.mac.clone(),
            socket: request.socket.clone(),
            holders: 1,
        };
        ports.insert(key.clone(), port);
        drop(ports);
        let known = self.shapes_of(|shape| is_of(shape, &key));
        for shape in &known {
            self.shape_now(id, shape)?;
        }
        Ok(key)
    }

    fn shapes_of(&self, wanted: impl Fn(&ShapeRequest) -> bool) -> Vec<ShapeRequest> {
        let shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        shapes
            .iter()
            .filter(|shape| wanted(shape))
            .cloned()
            .collect()
    }

    /// Forgets shapes, remembers one more, and writes down what is left.
    fn remember(
        &self,
        forget: impl Fn(&ShapeRequest) -> bool,
        new: Option<ShapeRequest>,
    ) -> Result<()> {
        let mut shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = shapes.len();
        shapes.retain(|shape| !forget(shape));
        if new.is_none() && shapes.len() == before {
            return Ok(());
        }
        shapes.extend(new);
        self.directory.write_shapes(&shapes)
    }

    fn let_go(&self, key: &Key, id: Option<PortId>) {
        if let Some(port) = self.ports().get_mut(key).filter(|port| Some(port.id) == id) {
            port.holders = port.holders.saturating_sub(1);
        }
    }

    /// Takes away the ports that nobody holds and to which no hypervisor is connected. Tells whether any are left.
    fn sweep(&self) -> Result<bool> {
        let mut ports = self.ports();
        let unheld: Vec<PortId> = ports
            .values()
            .filter(|port| port.holders == 0)
            .map(|port| port.id)
            .collect();
        if !unheld.is_empty() {
            let gone = self.ask(move |network| {
                let dead = |id: &PortId| !network.is_connected(*id);
                let gone: Vec<PortId> = unheld.into_iter().filter(dead).collect();
                for id in &gone {
                    // It is ours, so it is there.
                    let _ = network.remove(*id);
                }
                gone
            })?;
            ports.retain(|_, port| !gone.contains(&port.id));
        }
        let any = !ports.is_empty();
        if self.began.elapsed() > RETURN {
            // The shapes of VMs that have stopped go with them.
            let keys: Vec<Key> = ports.keys().cloned().collect();
            drop(ports);
            self.remember(|shape| !keys.iter().any(|key| is_of(shape, key)), None)?;
        }
        Ok(any)
    }

    /// Returns when netd is to end: nobody has needed it for a while, or somebody asked.
    pub(super) async fn until_end(&self) {
        let mut needed = Instant::now();
        loop {
            tokio::select! {
                () = self.end.notified() => return,
                () = tokio::time::sleep(TICK) => {}
            }
            match self.sweep() {
                Ok(true) => needed = Instant::now(),
                Ok(false) if needed.elapsed() < IDLE => {}
                Ok(false) => {
                    // Nobody is there whose link it could be.
                    let _ = self.remember(|_| true, None);
                    return;
                }
                // Without a switch there is nothing to stay for; whoever needs one starts another.
                Err(_) => return,
            }
        }
    }

    fn info(&self) -> Result<NetworkInfo> {
        let wanted: Vec<(Key, PortId, String)> = self
            .ports()
            .iter()
            .map(|(key, port)| (key.clone(), port.id, port.mac.clone()))
            .collect();
        let ports = self.ask(move |network| {
            let told = |(key, id, mac): (Key, PortId, String)| told(network, key, id, mac);
            wanted.into_iter().filter_map(told).collect()
        })?;
        Ok(NetworkInfo {
            pid: Some(std::process::id()),
            ports,
            ..self.directory.info()
        })
    }

    fn shape(&self, request: &ShapeRequest) -> Result<()> {
        let key = (request.vm.clone(), request.interface);
        let Some(id) = self.ports().get(&key).map(|port| port.id) else {
            let (name, network) = (&request.vm, self.directory.name());
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{name} does not run on {network}, so there is no link to shape"),
            )
            .with_hint(format!("start it with `inn start {name}`")));
        };
        self.shape_now(id, request)?;
        self.remember(|shape| is_of(shape, &key), Some(request.clone()))
    }

    fn shape_now(&self, id: PortId, request: &ShapeRequest) -> Result<()> {
        let asked = [
            (Direction::FromGuest, &request.from_guest),
            (Direction::ToGuest, &request.to_guest),
        ];
        for (direction, asked) in asked {
            if let Some(asked) = asked {
                let (link, seed) = (shape::link(asked)?, request.seed);
                let done = self.ask(move |network| network.shape(id, direction, link, seed))?;
                done.map_err(|error| {
                    Error::new(
                        ErrorKind::Conflict,
                        format!("{} has just stopped", request.vm),
                    )
                    .with_source(error)
                })?;
            }
        }
        Ok(())
    }
}

fn is_of(shape: &ShapeRequest, key: &Key) -> bool {
    shape.vm == key.0 && shape.interface == key.1
}

fn told(network: &mut Network, key: Key, id: PortId, mac: String) -> Option<NetworkPort> {
    let connected = network.is_connected(id);
    let switch = network.switch();
    let counters = *switch.counters(id).ok()?;
    let dropped = |count: &dyn Fn(DropReason) -> u64| {
        DropReason::ALL
            .iter()
            .map(|reason| (reason.word().to_owned(), count(*reason)))
            .filter(|(_, count)| *count > 0)
            .collect()
    };
    let link = |direction| {
        let link = switch.link(id, direction).ok()??;
        Some(shape::told(link.0))
    };
    Some(NetworkPort {
        vm: key.0,
        interface: key.1,
        mac,
        connected,
        received_frames: counters.received_frames,
        received_bytes: counters.received_bytes,
        sent_frames: counters.sent_frames,
        sent_bytes: counters.sent_bytes,
        dropped_from_guest: dropped(&|reason| counters.dropped_in(reason)),
        dropped_to_guest: dropped(&|reason| counters.dropped_out(reason)),
        from_guest: link(Direction::FromGuest),
        to_guest: link(Direction::ToGuest),
    })
}

pub(super) fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/network", get(info))
        .route("/v1/network/port", post(port))
        .route("/v1/network/shape", post(shape_port))
        .route("/v1/network/end", post(end))
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(shared)
}

async fn info(State(shared): State<Shared>) -> Answer<NetworkInfo> {
    shared.info().map(Json).map_err(Refusal)
}

async fn shape_port(State(shared): State<Shared>, body: Bytes) -> Answer<()> {
    let request = parse::<ShapeRequest>(&body)?;
    shared.shape(&request).map(Json).map_err(Refusal)
}

async fn end(State(shared): State<Shared>) -> Answer<()> {
    if shared.sweep().map_err(Refusal)? {
        return Err(Refusal(Error::new(
            ErrorKind::Conflict,
            format!("VMs are running on {}", shared.directory.name()),
        )));
    }
    shared.end.notify_one();
    Ok(Json(()))
}

async fn port(State(shared): State<Shared>, body: Bytes) -> std::result::Result<Response, Refusal> {
    let request = parse::<PortRequest>(&body)?;
    let key = shared.hold(&request).map_err(Refusal)?;
    let id = shared.ports().get(&key).map(|port| port.id);
    let (mut sender, body) = Channel::<Bytes>::new(1);
    tokio::spawn(async move {
        // A line now and then finds out whether anybody still reads.
        while sender.send_data(Bytes::from_static(b"\n")).await.is_ok() {
            tokio::time::sleep(TICK).await;
        }
        shared.let_go(&key, id);
    });
    Ok(Response::new(Body::new(body)))
}
