//! What happens to a machine: its delegate, and an observer of its `state`. Both are called on the machine's queue.
//!
//! A selector that is misspelt here would be found by nobody: the compiler can't know what VZ calls. They are copied from
//! `VZVirtualMachineDelegate.h` and from `NSKeyValueObserving.h`.

use std::ffi::c_void;
use std::ptr;

use objc2::rc::Retained;
use objc2::runtime::AnyObject;
use objc2::{AnyThread, DefinedClass, define_class, msg_send};
use objc2_foundation::{
    NSDictionary, NSError, NSKeyValueObservingOptions, NSObject,
    NSObjectNSKeyValueObserverRegistration, NSObjectProtocol, NSString, ns_string,
};
use objc2_virtualization::{
    VZNetworkDevice, VZVirtualMachine, VZVirtualMachineDelegate, VZVirtualMachineState,
};
use tokio::sync::mpsc;

use crate::error::VzError;

/// The state of a machine (`VZVirtualMachineState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It does not run, or no more.
    Stopped,
    /// The CPUs run.
    Running,
    /// The CPUs stand still.
    Paused,
    /// It failed inside VZ and can't go on.
    Error,
    /// It is being started.
    Starting,
    /// It is being paused.
    Pausing,
    /// It is being resumed.
    Resuming,
    /// It is being stopped.
    Stopping,
    /// Its state is being written.
    Saving,
    /// Its state is being read.
    Restoring,
    /// One that a newer macOS has: its number.
    Unknown(isize),
}

impl From<VZVirtualMachineState> for State {
    fn from(state: VZVirtualMachineState) -> Self {
        match state {
            VZVirtualMachineState::Stopped => State::Stopped,
            VZVirtualMachineState::Running => State::Running,
            VZVirtualMachineState::Paused => State::Paused,
            VZVirtualMachineState::Error => State::Error,
            VZVirtualMachineState::Starting => State::Starting,
            VZVirtualMachineState::Pausing => State::Pausing,
            VZVirtualMachineState::Resuming => State::Resuming,
            VZVirtualMachineState::Stopping => State::Stopping,
            VZVirtualMachineState::Saving => State::Saving,
            VZVirtualMachineState::Restoring => State::Restoring,
            other => State::Unknown(other.0),
        }
    }
}

/// What happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Its state is another one.
    State(State),
    /// The guest powered off.
    GuestStopped,
    /// It stopped because of an error.
    StoppedWithError(VzError),
    /// An interface lost what it was attached to: the interface's MAC address, if that is known.
    NetworkLost(Option<String>, VzError),
}

pub(crate) struct DelegateState {
    events: mpsc::UnboundedSender<Event>,
    macs: Vec<String>,
}

define_class!(
    // SAFETY: `NSObject` asks nothing of its subclasses, and there is no `Drop`.
    #[unsafe(super(NSObject))]
    #[ivars = DelegateState]
    pub(crate) struct Delegate;

    // SAFETY: `NSObjectProtocol` asks nothing.
    unsafe impl NSObjectProtocol for Delegate {}

    // SAFETY: the methods have the types of the protocol, and are called on the machine's queue.
    unsafe impl VZVirtualMachineDelegate for Delegate {
        #[unsafe(method(guestDidStopVirtualMachine:))]
        fn guest_did_stop(&self, _machine: &VZVirtualMachine) {
            self.tell(Event::GuestStopped);
        }

        #[unsafe(method(virtualMachine:didStopWithError:))]
        fn did_stop_with_error(&self, _machine: &VZVirtualMachine, error: &NSError) {
            self.tell(Event::StoppedWithError(VzError::from_ns(error)));
        }

        #[unsafe(method(virtualMachine:networkDevice:attachmentWasDisconnectedWithError:))]
        fn attachment_was_disconnected(
            &self,
            machine: &VZVirtualMachine,
            device: &VZNetworkDevice,
            error: &NSError,
        ) {
            // SAFETY: on the machine's queue. The devices are in the order of the configuration (VZVirtualMachine.h).
            let index = unsafe { machine.networkDevices() }
                .iter()
                .position(|other| ptr::eq(&raw const *other, device));
            let mac = index
                .and_then(|index| self.ivars().macs.get(index))
                .cloned();
            self.tell(Event::NetworkLost(mac, VzError::from_ns(error)));
        }
    }
);

impl Delegate {
    pub(crate) fn new(events: mpsc::UnboundedSender<Event>, macs: Vec<String>) -> Retained<Self> {
        let this = Self::alloc().set_ivars(DelegateState { events, macs });
        // SAFETY: `NSObject`'s `init`, once, on an object whose variables are set.
        unsafe { msg_send![super(this), init] }
    }

    fn tell(&self, event: Event) {
        // Nobody listens any more: then nobody misses it.
        let _ = self.ivars().events.send(event);
    }
}

pub(crate) struct ObserverState {
    machine: Retained<VZVirtualMachine>,
    events: mpsc::UnboundedSender<Event>,
}

define_class!(
    // SAFETY: `NSObject` asks nothing of its subclasses. `Drop` calls no method that is overridden here and does not retain.
    #[unsafe(super(NSObject))]
    #[ivars = ObserverState]
    pub(crate) struct Observer;

    impl Observer {
        #[unsafe(method(observeValueForKeyPath:ofObject:change:context:))]
        fn observe_value(
            &self,
            _key_path: Option<&NSString>,
            _object: Option<&AnyObject>,
            _change: Option<&NSDictionary<NSString, AnyObject>>,
            _context: *mut c_void,
        ) {
            // SAFETY: VZ tells changes on the machine's queue (VZVirtualMachine.h, `state`).
            let state = unsafe { self.ivars().machine.state() };
            let _ = self.ivars().events.send(Event::State(state.into()));
        }
    }

    // SAFETY: `NSObjectProtocol` asks nothing.
    unsafe impl NSObjectProtocol for Observer {}
);

impl Observer {
    /// Begins to observe a machine's state; ends when it is dropped.
    pub(crate) fn new(
        machine: Retained<VZVirtualMachine>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Retained<Self> {
        let this = Self::alloc().set_ivars(ObserverState { machine, events });
        // SAFETY: `NSObject`'s `init`, once, on an object whose variables are set.
        let this: Retained<Self> = unsafe { msg_send![super(this), init] };
        // SAFETY: the observer takes itself off before it goes. No context is needed, since nothing else here observes.
        unsafe {
            this.ivars().machine.addObserver_forKeyPath_options_context(
                &this,
                ns_string!("state"),
                NSKeyValueObservingOptions::New,
                ptr::null_mut(),
            );
        }
        this
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // SAFETY: it was put on in `new`, which alone makes one.
        unsafe {
            self.ivars()
                .machine
                .removeObserver_forKeyPath(self, ns_string!("state"));
        }
    }
}
