//! A virtual machine, as a handle that any thread may hold.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use block2::RcBlock;
use objc2::AnyThread;
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSArray, NSError};
use objc2_virtualization::{
    VZUSBController, VZUSBDevice, VZUSBMassStorageDevice, VZVirtioTraditionalMemoryBalloonDevice,
    VZVirtualMachine,
};
use tokio::sync::mpsc;

use crate::boot::file_url;
use crate::configuration::{Configuration, uuid_bytes};
use crate::error::VzError;
use crate::events::{Delegate, Event, Observer, State};
use crate::host;
use crate::queue::{Confined, Handler};
use crate::socket::Listener;
use crate::storage::{StorageAttachment, usb_stick_on_controller};

/// What lives on the queue. VZ holds delegate, observer and listeners weakly: they live here.
pub(crate) struct Inner {
    pub(crate) machine: Retained<VZVirtualMachine>,
    _delegate: Retained<Delegate>,
    _observer: Retained<Observer>,
    pub(crate) listeners: RefCell<HashMap<u32, Listener>>,
}

impl Inner {
    fn controller(&self) -> Result<Retained<VZUSBController>, VzError> {
        host::need((15, 0), "a USB controller")?;
        // SAFETY: on the machine's queue; the property is there since macOS 15, which was asked.
        unsafe { self.machine.usbControllers() }
            .firstObject()
            .ok_or_else(|| VzError::missing("USB controller in this machine"))
    }

    fn balloon(&self) -> Result<Retained<VZVirtioTraditionalMemoryBalloonDevice>, VzError> {
        // SAFETY: on the machine's queue.
        unsafe { self.machine.memoryBalloonDevices() }
            .firstObject()
            .and_then(|device| device.downcast().ok())
            .ok_or_else(|| VzError::missing("balloon in this machine"))
    }
}

/// A virtual machine. Dropping it ends the machine as by pulling the plug.
///
/// Every method returns when VZ has answered; what that did to the machine comes as [`Event`]s.
pub struct VirtualMachine {
    pub(crate) inner: Confined<Inner>,
    unsaveable: Option<VzError>,
}

impl VirtualMachine {
    /// Makes a machine, which is stopped, from the configuration that `build` makes on the machine's queue.
    ///
    /// Errors: what `build` says; `InvalidConfiguration` with VZ's reason.
    pub async fn new(
        label: &str,
        build: impl FnOnce() -> Result<Configuration, VzError> + Send + 'static,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>), VzError> {
        let (events, receiver) = mpsc::unbounded_channel();
        let inner = Confined::new(label, move |queue| {
            let finished = build()?.finish()?;
            // SAFETY: on the queue that the machine is given, where all of its methods are called.
            let machine = unsafe {
                VZVirtualMachine::initWithConfiguration_queue(
                    VZVirtualMachine::alloc(),
                    &finished.object,
                    queue,
                )
            };
            let delegate = Delegate::new(events.clone(), finished.macs);
            // SAFETY: on the queue. VZ holds the delegate weakly; `Inner` keeps it as long as the machine.
            unsafe { machine.setDelegate(Some(ProtocolObject::from_ref(&*delegate))) };
            let observer = Observer::new(machine.clone(), events);
            Ok((
                Inner {
                    machine,
                    _delegate: delegate,
                    _observer: observer,
                    listeners: RefCell::default(),
                },
                finished.unsaveable,
            ))
        })
        .await?;
        let (inner, unsaveable) = inner;
        Ok((VirtualMachine { inner, unsaveable }, receiver))
    }

    /// Returns why the machine can't be saved, if it can't.
    pub fn unsaveable(&self) -> Option<&VzError> {
        self.unsaveable.as_ref()
    }

    /// Returns the state that it is in.
    pub async fn state(&self) -> Result<State, VzError> {
        // SAFETY: on the machine's queue.
        self.inner
            .ask(|inner| unsafe { inner.machine.state() }.into())
            .await
    }

    async fn complete(
        &self,
        begin: impl FnOnce(&VZVirtualMachine, &Handler) + Send + 'static,
    ) -> Result<(), VzError> {
        self.inner
            .complete(move |inner, handler| {
                begin(&inner.machine, handler);
                Ok(())
            })
            .await
    }

    /// Starts it.
    pub async fn start(&self) -> Result<(), VzError> {
        // SAFETY: on the machine's queue; the handler is called once, there.
        self.complete(|machine, handler| unsafe { machine.startWithCompletionHandler(handler) })
            .await
    }

    /// Stops the CPUs.
    pub async fn pause(&self) -> Result<(), VzError> {
        // SAFETY: on the machine's queue; the handler is called once, there.
        self.complete(|machine, handler| unsafe { machine.pauseWithCompletionHandler(handler) })
            .await
    }

    /// Continues the CPUs.
    pub async fn resume(&self) -> Result<(), VzError> {
        // SAFETY: on the machine's queue; the handler is called once, there.
        self.complete(|machine, handler| unsafe { machine.resumeWithCompletionHandler(handler) })
            .await
    }

    /// Asks the guest to power off.
    pub async fn request_stop(&self) -> Result<(), VzError> {
        self.inner
            .ask(|inner| {
                // SAFETY: on the machine's queue.
                unsafe { inner.machine.requestStopWithError() }
                    .map_err(|error| VzError::from_ns(&error))
            })
            .await?
    }

    /// Stops it as by pulling the plug. One that has stopped already is left as it is.
    pub async fn stop(&self) -> Result<(), VzError> {
        host::need((12, 0), "stopping a machine")?;
        // SAFETY: on the machine's queue, here and below; the handler is called once, there.
        let stopped = |state| matches!(state, State::Stopped | State::Error);
        if stopped(self.state().await?) {
            return Ok(());
        }
        let result = self
            .complete(|machine, handler| unsafe { machine.stopWithCompletionHandler(handler) })
            .await;
        match result {
            // It may have stopped by itself meanwhile, which VZ calls an error.
            Err(error) if !stopped(self.state().await?) => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes its memory and devices to a file; it must stand still (macOS 14).
    pub async fn save(&self, path: &Path) -> Result<(), VzError> {
        host::need((14, 0), "saving a machine's state")?;
        let path = path.to_owned();
        self.inner
            .complete(move |inner, handler| {
                let url = file_url(&path)?;
                // SAFETY: on the machine's queue; the handler is called once, there. The method is there since macOS 14.
                unsafe {
                    inner
                        .machine
                        .saveMachineStateToURL_completionHandler(&url, handler);
                }
                Ok(())
            })
            .await
    }

    /// Reads its memory and devices from a file; it must be stopped, and stands still afterwards (macOS 14).
    pub async fn restore(&self, path: &Path) -> Result<(), VzError> {
        host::need((14, 0), "restoring a machine's state")?;
        let path = path.to_owned();
        self.inner
            .complete(move |inner, handler| {
                let url = file_url(&path)?;
                // SAFETY: on the machine's queue; the handler is called once, there. The method is there since macOS 14.
                unsafe {
                    inner
                        .machine
                        .restoreMachineStateFromURL_completionHandler(&url, handler);
                }
                Ok(())
            })
            .await
    }

    /// Asks the guest to keep within so much memory, in bytes; a multiple of 1 MiB.
    ///
    /// VZ does not tell whether the guest follows.
    pub async fn set_memory_target(&self, bytes: u64) -> Result<(), VzError> {
        self.inner
            .ask(move |inner| {
                // SAFETY: on the machine's queue.
                unsafe { inner.balloon()?.setTargetVirtualMachineMemorySize(bytes) };
                Ok(())
            })
            .await?
    }

    /// Attaches a USB stick, known by its UUID, whose blocks come from what `attachment` makes on the queue (macOS 15).
    pub async fn attach_usb(
        &self,
        uuid: [u8; 16],
        attachment: impl FnOnce() -> Result<StorageAttachment, VzError> + Send + 'static,
    ) -> Result<(), VzError> {
        self.inner
            .complete(move |inner, handler| {
                let controller = inner.controller()?;
                let configuration = usb_stick_on_controller(&attachment()?, uuid)?;
                // SAFETY: on the machine's queue; the handler is called once, there.
                unsafe {
                    let device = VZUSBMassStorageDevice::initWithConfiguration(
                        VZUSBMassStorageDevice::alloc(),
                        &configuration,
                    );
                    controller.attachDevice_completionHandler(
                        ProtocolObject::from_ref(&*device),
                        handler,
                    );
                }
                Ok(())
            })
            .await
    }

    /// Takes a USB stick off again, whatever the guest does with it (macOS 15). Errors: `Usb` if none has this UUID.
    pub async fn detach_usb(&self, uuid: [u8; 16]) -> Result<(), VzError> {
        self.inner
            .complete(move |inner, handler| {
                let controller = inner.controller()?;
                // SAFETY: on the machine's queue; the handler is called once, there.
                unsafe {
                    let devices: Retained<NSArray<ProtocolObject<dyn VZUSBDevice>>> =
                        controller.usbDevices();
                    let device = devices
                        .iter()
                        .find(|device| uuid_bytes(&device.uuid()) == uuid)
                        .ok_or_else(|| VzError::missing("USB stick of this name"))?;
                    controller.detachDevice_completionHandler(&device, handler);
                }
                Ok(())
            })
            .await
    }
}

impl Drop for VirtualMachine {
    fn drop(&mut self) {
        self.inner.tell(|inner| {
            // SAFETY: on the machine's queue. `stop` exists since macOS 12; before that letting go of the machine has to do.
            unsafe {
                if host::version() >= (12, 0) && inner.machine.canStop() {
                    // The handler keeps the machine until it has stopped.
                    let machine = inner.machine.clone();
                    let handler = RcBlock::new(move |_: *mut NSError| {
                        let _ = &machine;
                    });
                    inner.machine.stopWithCompletionHandler(&handler);
                }
            }
        });
    }
}
