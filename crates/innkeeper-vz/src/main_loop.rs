//! The main thread's run loop, for what AppKit allows there alone: a window with a machine's display.
//!
//! ```text
//!   main thread: run(work) ── CFRunLoop ◄─ closures for the main queue ── run_application ─► NSApplication
//!   other thread:  work() ─────── ends ──► the loops are stopped, run returns what work returned
//! ```
//!
//! A plain run loop needs no window server, so that a program without windows is not tied to one: AppKit begins only when it is asked for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use dispatch2::DispatchQueue;
use objc2::MainThreadMarker;
use objc2_app_kit::{
    NSApplication, NSApplicationActivationPolicy, NSEvent, NSEventModifierFlags, NSEventType,
};
use objc2_core_foundation::CFRunLoop;
use objc2_foundation::NSPoint;

/// Whether the application was begun: asking for it otherwise would make it, and with it a connection to the window server.
static APPLICATION: AtomicBool = AtomicBool::new(false);

/// Runs the main thread's loop until `work`, on a thread of its own, has ended; returns what that returned.
///
/// Errors: hands `work` back if this is not the main thread. A panic of `work` goes on here.
pub fn run<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(work: F) -> Result<T, F> {
    let Some(main) = MainThreadMarker::new() else {
        return Err(work);
    };
    let (sender, receiver) = mpsc::channel();
    let worker = thread::spawn(move || {
        let result = work();
        // The receiver is there until this was received.
        let _ = sender.send(result);
    });
    let watcher = thread::spawn(move || {
        let ended = worker.join();
        DispatchQueue::main().exec_async(|| {
            if let Some(main) = MainThreadMarker::new() {
                stop(main);
            }
        });
        ended
    });
    let _ = main;
    CFRunLoop::run();
    match watcher.join() {
        Ok(Ok(())) => {}
        Ok(Err(panic)) | Err(panic) => std::panic::resume_unwind(panic),
    }
    match receiver.recv() {
        Ok(result) => Ok(result),
        // It did not panic, so it has sent.
        Err(_) => unreachable!("the work ended without a result"),
    }
}

/// Begins the application on the main thread: windows, menus, a place in the Dock. The main thread must be in [`run`].
pub fn run_application() {
    DispatchQueue::main().exec_async(|| {
        let Some(main) = MainThreadMarker::new() else {
            return;
        };
        APPLICATION.store(true, Ordering::SeqCst);
        let application = NSApplication::sharedApplication(main);
        if !application.isRunning() {
            application.setActivationPolicy(NSApplicationActivationPolicy::Regular);
            application.run();
        }
    });
}

/// Stops the application, if it runs, and the run loop.
fn stop(main: MainThreadMarker) {
    if APPLICATION.load(Ordering::SeqCst) {
        stop_application(&NSApplication::sharedApplication(main));
    }
    if let Some(run_loop) = CFRunLoop::main() {
        run_loop.stop();
    }
}

fn stop_application(application: &NSApplication) {
    application.stop(None);
    // `stop` takes effect after the next event, so one is made.
    let event = NSEvent::otherEventWithType_location_modifierFlags_timestamp_windowNumber_context_subtype_data1_data2(
        NSEventType::ApplicationDefined,
        NSPoint::ZERO,
        NSEventModifierFlags::empty(),
        0.0,
        0,
        None,
        0,
        0,
        0,
    );
    if let Some(event) = event {
        application.postEvent_atStart(&event, true);
    }
}
