//! Forwarded TCP ports: the guest's ports are this computer's.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

use innkeeper::drivers::fake::{Plan, PlanForward};

/// Listens on every forwarded port.
pub(crate) fn start(plan: &Plan) -> io::Result<()> {
    for PlanForward { host, guest_port } in plan.forwards.clone() {
        let listener = TcpListener::bind(host)?;
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
    Ok(())
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
