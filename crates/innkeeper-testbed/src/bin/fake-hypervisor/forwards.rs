//! Forwarded TCP ports: the guest's ports are this computer's.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

use innkeeper::drivers::fake::PlanForward;

/// Ports that are forwarded, until they are ended.
pub(crate) struct Forwards(Vec<TcpListener>);

impl Forwards {
    /// Forwards no more; what is connected stays.
    pub(crate) fn end(&mut self) {
        for listener in self.0.drain(..) {
            // Wakes who waits in accept(2), which then closes the last descriptor.
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
        }
    }
}

/// Listens on every forwarded port.
pub(crate) fn start(forwards: &[PlanForward]) -> io::Result<Forwards> {
    let mut listeners = Vec::new();
    for PlanForward { host, guest_port } in forwards.iter().cloned() {
        let listener = TcpListener::bind(host)?;
        listeners.push(listener.try_clone()?);
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                std::thread::spawn(move || {
                    // A guest without a listener closes the connection, as a user-mode network does.
                    if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, guest_port)) {
                        let _ = join(&client, &server);
                    }
                });
            }
        });
    }
    Ok(Forwards(listeners))
}

fn join(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let upward = std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server, client);
    let copied = io::copy(&mut from_server, &mut to_client).map(drop);
    let _ = client.shutdown(Shutdown::Write);
    let _ = upward.join();
    copied
}
