//! `inn vsock`: sockets of a guest by their vsock port, joined to standard input and output, or to sockets of this computer.

use std::net::SocketAddr;
use std::path::PathBuf;

use innkeeper::api::ErrorKind;
use innkeeper::driver::Channel;
use innkeeper::{Error, Host};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::failure::Result;
use crate::output::Output;

/// Connect to a vsock port of a guest, wait for the guest to connect, or forward between the two
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn vsock web 5000                            joins standard input and output to it
  inn vsock web 5000 --forward tcp:127.0.0.1:5000
  inn vsock web 5000 --forward unix:/run/user/1000/web.sock
  inn vsock web 6000 --listen                   waits until the guest connects to port 6000 of the host
  inn vsock web 6000 --listen --forward tcp:127.0.0.1:8080")]
pub(crate) struct Args {
    /// VM
    name: String,

    /// vsock port
    port: u32,

    /// Wait for connections that the guest makes to this port of the host (context id 2; by the agent, 1: see `inn explain`)
    #[arg(long)]
    listen: bool,

    /// Join each connection to a socket of this computer instead: one that is made and listened at or, with --listen, one that is
    /// connected to
    #[arg(long, value_name = "tcp:ADDRESS:PORT|unix:PATH", value_parser = end)]
    forward: Option<End>,
}

/// A socket of this computer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

fn end(text: &str) -> Result<End, String> {
    match text.split_once(':') {
        Some(("tcp", address)) => match address.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(End::Tcp(address)),
            Ok(_) => {
                Err("only loopback addresses: other computers must not reach the guest".to_owned())
            }
            Err(_) => Err("write tcp:ADDRESS:PORT, such as tcp:127.0.0.1:5000".to_owned()),
        },
        Some(("unix", path)) if !path.is_empty() => Ok(End::Unix(PathBuf::from(path))),
        _ => Err("write tcp:ADDRESS:PORT or unix:PATH".to_owned()),
    }
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let name = self.name.as_str();
        match (&self.forward, self.listen) {
            (None, false) => join_standard(host.vsock_connect(name, self.port).await?).await?,
            (None, true) => join_standard(host.vsock_accept(name, self.port).await?).await?,
            (Some(end), false) => self.forward_in(host, end, output).await?,
            (Some(end), true) => self.forward_out(host, end, output).await?,
        }
        Ok(0)
    }

    /// Listens on this computer, and connects to the guest for each connection.
    async fn forward_in(&self, host: &Host, end: &End, output: &Output) -> Result<()> {
        let listener = Listener::bind(end).await?;
        output.note(&format!(
            "{} leads to vsock port {} of {}",
            listener.name(),
            self.port,
            self.name
        ));
        loop {
            let near = listener.accept().await?;
            match host.vsock_connect(&self.name, self.port).await {
                Ok(far) => drop(tokio::spawn(join(near, far))),
                Err(error) if error.kind() == ErrorKind::Unreachable => {
                    output.note(&error.chain().join(": "));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the guest's connections, and connects to this computer's socket for each.
    async fn forward_out(&self, host: &Host, end: &End, output: &Output) -> Result<()> {
        output.note(&format!(
            "{}'s connections to vsock port {} are joined",
            self.name, self.port
        ));
        loop {
            let far = host.vsock_accept(&self.name, self.port).await?;
            let near: std::io::Result<Box<dyn Channel>> = match end {
                End::Tcp(address) => TcpStream::connect(address)
                    .await
                    .map(|stream| Box::new(stream) as _),
                End::Unix(path) => UnixStream::connect(path)
                    .await
                    .map(|stream| Box::new(stream) as _),
            };
            match near {
                Ok(near) => drop(tokio::spawn(join(near, far))),
                Err(error) => output.note(&format!("nothing listens there: {error}")),
            }
        }
    }
}

/// A socket of this computer that listens. A unix socket is removed when it is done with.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    async fn bind(end: &End) -> Result<Self> {
        let bound = match end {
            End::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
            End::Unix(path) => {
                UnixListener::bind(path).map(|listener| Listener::Unix(listener, path.clone()))
            }
        };
        Ok(bound.map_err(|source| Error::io(format!("listening on {end:?}"), source))?)
    }

    fn name(&self) -> String {
        match self {
            Listener::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|_| "tcp".to_owned(), |address| address.to_string()),
            Listener::Unix(_, path) => path.display().to_string(),
        }
    }

    async fn accept(&self) -> Result<Box<dyn Channel>> {
        let accepted: std::io::Result<Box<dyn Channel>> = match self {
            Listener::Tcp(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| Box::new(stream) as _),
            Listener::Unix(listener, _) => listener
                .accept()
                .await
                .map(|(stream, _)| Box::new(stream) as _),
        };
        Ok(accepted.map_err(|source| Error::io("accepting a connection", source))?)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn join(mut near: Box<dyn Channel>, mut far: Box<dyn Channel>) {
    // However one end goes away, the other is closed by it.
    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
}

/// Joins a connection to standard input and output until the other end closes it.
async fn join_standard(channel: Box<dyn Channel>) -> Result<()> {
    let (mut from_guest, mut to_guest) = tokio::io::split(channel);
    let feed = async {
        tokio::io::copy(&mut tokio::io::stdin(), &mut to_guest).await?;
        to_guest.shutdown().await?;
        std::future::pending::<std::io::Result<()>>().await
    };
    let mut stdout = tokio::io::stdout();
    let ended = tokio::select! {
        ended = feed => ended,
        ended = tokio::io::copy(&mut from_guest, &mut stdout) => ended.map(drop),
    };
    let flushed = stdout.flush().await;
    Ok(ended
        .and(flushed)
        .map_err(|source| Error::io("passing bytes on", source))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_and_only_loopback_is_taken() {
        assert_eq!(end("unix:/a:b"), Ok(End::Unix(PathBuf::from("/a:b"))));
        assert!(matches!(end("tcp:127.0.0.1:80"), Ok(End::Tcp(_))));
        assert!(matches!(end("tcp:[::1]:80"), Ok(End::Tcp(_))));
        for wrong in ["", "tcp:80", "tcp:0.0.0.0:80", "unix:", "vsock:1"] {
            assert!(end(wrong).is_err(), "{wrong}");
        }
    }
}
