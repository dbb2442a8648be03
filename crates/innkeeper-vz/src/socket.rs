//! vsock: connections to sockets in the guest, and from the guest to ports of the host.

use std::os::fd::{BorrowedFd, OwnedFd};

use block2::RcBlock;
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2::{AnyThread, DefinedClass, define_class, msg_send};
use objc2_foundation::{NSError, NSObject, NSObjectProtocol};
use objc2_virtualization::{
    VZVirtioSocketConnection, VZVirtioSocketDevice, VZVirtioSocketListener,
    VZVirtioSocketListenerDelegate,
};
use tokio::sync::{mpsc, oneshot};

use crate::error::VzError;
use crate::machine::{Inner, VirtualMachine};
use crate::queue::Reply;

/// Connections that wait to be taken; more are refused.
const BACKLOG: usize = 16;

pub(crate) struct ListenerState {
    connections: mpsc::Sender<OwnedFd>,
}

define_class!(
    // SAFETY: `NSObject` asks nothing of its subclasses, and there is no `Drop`.
    #[unsafe(super(NSObject))]
    #[ivars = ListenerState]
    pub(crate) struct Acceptor;

    // SAFETY: `NSObjectProtocol` asks nothing.
    unsafe impl NSObjectProtocol for Acceptor {}

    // SAFETY: the method has the type of the protocol, and is called on the machine's queue. The selector is copied from
    // `VZVirtioSocketListener.h`.
    unsafe impl VZVirtioSocketListenerDelegate for Acceptor {
        #[unsafe(method(listener:shouldAcceptNewConnection:fromSocketDevice:))]
        fn should_accept(
            &self,
            _listener: &VZVirtioSocketListener,
            connection: &VZVirtioSocketConnection,
            _device: &VZVirtioSocketDevice,
        ) -> bool {
            self.accept(connection)
        }
    }
);

impl Acceptor {
    fn accept(&self, connection: &VZVirtioSocketConnection) -> bool {
        let Ok(permit) = self.ivars().connections.try_reserve() else {
            return false;
        };
        match own(connection) {
            Ok(descriptor) => {
                permit.send(descriptor);
                true
            }
            Err(_) => false,
        }
    }
}

/// Takes a connection's descriptor: a duplicate, since VZ closes its own when it lets go of the connection.
fn own(connection: &VZVirtioSocketConnection) -> Result<OwnedFd, VzError> {
    // SAFETY: on the machine's queue.
    let descriptor = unsafe { connection.fileDescriptor() };
    if descriptor < 0 {
        return Err(VzError::refused("a connection that has closed"));
    }
    // SAFETY: the connection, which lives for the call, has this descriptor open.
    unsafe { BorrowedFd::borrow_raw(descriptor) }
        .try_clone_to_owned()
        .map_err(|error| VzError::refused(format!("a connection: {error}")))
}

/// Something that listens: VZ holds the acceptor weakly, so it is kept here.
pub(crate) struct Listener {
    _listener: Retained<VZVirtioSocketListener>,
    acceptor: Retained<Acceptor>,
}

impl Inner {
    fn socket_device(&self) -> Result<Retained<VZVirtioSocketDevice>, VzError> {
        // SAFETY: on the machine's queue.
        unsafe { self.machine.socketDevices() }
            .firstObject()
            .and_then(|device| device.downcast().ok())
            .ok_or_else(|| VzError::missing("vsock device in this machine"))
    }
}

impl VirtualMachine {
    /// Connects to a port on which something in the guest listens. The descriptor is a stream socket.
    pub async fn connect(&self, port: u32) -> Result<OwnedFd, VzError> {
        let (sender, receiver) = oneshot::channel();
        let reply = Reply::new(sender);
        self.inner.tell(move |inner| {
            let device = match inner.socket_device() {
                Ok(device) => device,
                Err(error) => return reply.send(Err(error)),
            };
            let handler = RcBlock::new(
                move |connection: *mut VZVirtioSocketConnection, error: *mut NSError| {
                    // SAFETY: VZ passes one of the two, which lives for the call, and null for the other.
                    let result = match unsafe { connection.as_ref() } {
                        Some(connection) => own(connection),
                        None => Err(unsafe { VzError::from_handler(error) }
                            .err()
                            .unwrap_or_else(VzError::gone)),
                    };
                    reply.send(result);
                },
            );
            // SAFETY: on the machine's queue; the handler is called once, there.
            unsafe { device.connectToPort_completionHandler(port, &handler) };
        });
        receiver.await.unwrap_or_else(|_| Err(VzError::gone()))
    }

    /// Takes connections that the guest makes to a port of the host, until the receiver is dropped. The descriptors are stream sockets.
    ///
    /// Errors: `InvalidConfiguration` if somebody listens there already.
    pub async fn listen(&self, port: u32) -> Result<mpsc::Receiver<OwnedFd>, VzError> {
        let (connections, receiver) = mpsc::channel(BACKLOG);
        self.inner
            .ask(move |inner| {
                let device = inner.socket_device()?;
                let mut listeners = inner.listeners.borrow_mut();
                let taken = listeners
                    .get(&port)
                    .is_some_and(|other| !other.acceptor.ivars().connections.is_closed());
                if taken {
                    return Err(VzError::refused(format!(
                        "a second listener on port {port}"
                    )));
                }
                let acceptor = Acceptor::alloc().set_ivars(ListenerState { connections });
                // SAFETY: `NSObject`'s `init`, once, on an object whose variables are set; the rest on the machine's queue, with
                // the acceptor kept for as long as it may be called.
                let acceptor: Retained<Acceptor> = unsafe { msg_send![super(acceptor), init] };
                let listener = unsafe {
                    let listener = VZVirtioSocketListener::new();
                    listener.setDelegate(Some(ProtocolObject::from_ref(&*acceptor)));
                    device.setSocketListener_forPort(&listener, port);
                    listener
                };
                listeners.insert(
                    port,
                    Listener {
                        _listener: listener,
                        acceptor,
                    },
                );
                Ok(())
            })
            .await??;
        Ok(receiver)
    }
}
