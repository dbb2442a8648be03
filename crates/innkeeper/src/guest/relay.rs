//! The keeper's relay: a client's streams are joined to the agent's, ids differ, credit passes through.
//!
//! ```text
//!  client ──frames──► Connection (as agent) ─┐ data, messages, ends, credit: stream by stream
//!                                            ├──────────────────────────────────────────────► Connection (as host) ──► agent
//!  client ◄──frames── Connection (as agent) ─┘ payloads are shared, not copied
//! ```
//! Because credit is the endpoints' own, the relay holds at most one window per channel. A client that goes away has its
//! streams closed as gone: its commands get SIGHUP after a grace, in which they can be attached again.

use super::channel::{GuestChannel, not_connected};
use super::connection::{Connection, Sink};
use bytes::Bytes;
use innkeeper_agent::message::{AgentEvent, Closing, ErrorKind};
use innkeeper_agent::mux::{Config, Event, Incoming, Side};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// Streams that one client may have open.
const CLIENT_STREAMS: usize = 64;

/// Serves one client of the keeper over its byte stream, until that ends. The agent's handshake must be done; what is
/// asked while the agent is away fails as "link lost".
pub async fn relay<T>(channel: &GuestChannel, client: T)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let status = channel.status().borrow().clone();
    let (features, guest) = match status.hello {
        Some(hello) => (hello.features, hello.guest),
        None => (Vec::new(), None),
    };
    let software = concat!("innkeeper keeper ", env!("CARGO_PKG_VERSION")).to_owned();
    let config = Config {
        side: Side::Agent,
        software,
        features,
        guest,
        max_streams: CLIENT_STREAMS,
    };
    let upstream = Arc::clone(channel.connection());
    let handler = Box::new(move |client: &Arc<Connection>, event| {
        if let Some(Event::Opened { stream, request }) = event {
            join(client, stream, request, &upstream);
        }
    });
    let mut events = channel.events();
    let (connection, served) = Connection::new(client, config, handler);
    let told = async {
        loop {
            match events.recv().await {
                Ok(event) => push(&connection, &event),
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => {
                    std::future::pending().await
                }
            }
        }
    };
    tokio::select! {
        () = served => {}
        () = told => {}
    }
}

fn push(connection: &Connection, event: &AgentEvent) {
    if let Ok(json) = serde_json::to_vec(event) {
        // Before the client's handshake there is nobody to tell.
        let _ = connection.push_event(json.into());
    }
}

/// Opens the agent's stream for a client's, and ties them together.
fn join(client: &Arc<Connection>, stream: u32, request: Bytes, upstream: &Arc<Connection>) {
    let back = Arc::downgrade(client);
    let agent = Arc::downgrade(upstream);
    let opened = upstream.open(request, |agent_stream| -> Sink {
        Arc::new(move |incoming| match (back.upgrade(), agent.upgrade()) {
            (Some(client), Some(agent)) => {
                pass(incoming, &client, stream, &agent, agent_stream, false)
            }
            (None, Some(agent)) => agent.close(agent_stream, &Closing::Gone),
            _ => {}
        })
    });
    match opened {
        Ok(agent_stream) => {
            let (back, agent) = (Arc::downgrade(client), Arc::downgrade(upstream));
            let sink: Sink = Arc::new(move |incoming| {
                if let (Some(client), Some(agent)) = (back.upgrade(), agent.upgrade()) {
                    pass(incoming, &agent, agent_stream, &client, stream, true);
                }
            });
            client.set_sink(stream, sink);
        }
        Err(_) => client.close(stream, &not_connected()),
    }
}

/// Passes what came from one side on to the other.
fn pass(
    incoming: Incoming,
    to: &Connection,
    to_stream: u32,
    from: &Connection,
    from_stream: u32,
    from_client: bool,
) {
    let passed = match incoming {
        Incoming::Message(message) => to.message(to_stream, message),
        Incoming::Data { channel, bytes } => to.data(to_stream, channel, bytes),
        Incoming::Credit { channel, delta } => to.grant(to_stream, channel, delta),
        Incoming::End { channel } => to.end(to_stream, channel),
        Incoming::Closed(closing) => {
            let lost =
                matches!(&closing, Closing::Failed(failure) if failure.kind == ErrorKind::LinkLost);
            // A lost client is a consumer that is gone; the agent's own link is well.
            to.close(
                to_stream,
                if from_client && lost {
                    &Closing::Gone
                } else {
                    &closing
                },
            );
            Ok(())
        }
    };
    if passed.is_err() {
        // The other side is gone, or this one broke its credit: the pair has no use any more.
        to.close(to_stream, &Closing::Gone);
        from.close(from_stream, &Closing::Gone);
    }
}
