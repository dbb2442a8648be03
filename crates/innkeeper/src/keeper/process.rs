//! The keeper as a process: `HELPER keeper NAME`.

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use innkeeper_api::{Capability, ErrorKind, StopRequest};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::actor::{Actor, Command, Context};
use super::log_files::KeeperLog;
use super::server::{Shared, router};
use crate::driver::{Driver, lacks};
use crate::error::{Error, Result};
use crate::host::Host;

/// What a keeper writes to its standard output, as one line, once it listens. Anything else there is a `Problem` as JSON: why it does not.
pub const READY: &str = "listening";
/// Answers that are under way may take this long after the VM has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// A guest whose machine would end with us may take this long to stop, in milliseconds, when we are asked to end.
const LAST_STOP_MS: u64 = 60_000;

/// Runs the keeper of one VM until there is nothing left to keep. The caller is a process of its own.
///
/// Tells on standard output whether it listens. Errors: `Conflict` if the VM has a keeper already, or a command is changing it.
pub async fn run(host: &Host, name: &str) -> Result<()> {
    // A terminal's hang-up and Ctrl-C are not for us. It fails only if we lead a group already, and then we are away from it too.
    let _ = rustix::process::setsid();
    match prepare(host, name).await {
        Ok((actor, listener, log)) => {
            tell(READY);
            let driver = actor.driver();
            serve(actor, listener, log, driver).await
        }
        Err(error) => {
            tell(&serde_json::to_string(&error.to_problem()).unwrap_or_default());
            Err(error)
        }
    }
}

/// Writes the one line that the starter waits for, and lets go of its pipe.
pub(crate) fn tell(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null.as_fd());
    }
}

async fn prepare(host: &Host, name: &str) -> Result<(Actor, UnixListener, KeeperLog)> {
    let root = host.root().clone();
    let bundle = root.bundle(name)?;
    let Some(lock) = bundle.try_lock()? else {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("another command is at work on {name}"),
        ));
    };
    let log = KeeperLog::open(&bundle.path("log/keeper.log")).map_err(|error| {
        Error::io(
            format!("can't write {}", bundle.path("log/keeper.log").display()),
            error,
        )
    })?;
    host.settle_snapshots(&bundle)?;
    let identity = bundle.identity()?;
    let driver = host.driver(&identity.driver)?;
    let socket = root
        .make_socket_directory(&identity.id)?
        .join("keeper.sock");
    let context = Context {
        root,
        bundle,
        identity,
        driver,
        key: host.ssh_key(),
        log: log.clone(),
        helper: host.engine.helper(),
    };
    let (sockets, id) = (context.root.clone(), context.identity.id.clone());
    let mut actor = Actor::new(context, lock)?;
    actor.take_over().await?;
    // What was settled took the directory of the sockets with it.
    sockets.make_socket_directory(&id)?;
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)
        .map_err(|error| Error::io(format!("can't listen on {}", socket.display()), error))?;
    log.say(&format!("keeper of {name}, process {}", std::process::id()));
    Ok((actor, listener, log))
}

async fn serve(
    actor: Actor,
    listener: UnixListener,
    log: KeeperLog,
    driver: Arc<dyn Driver>,
) -> Result<()> {
    let (commands, incoming) = mpsc::unbounded_channel();
    let (info, agent) = actor.told();
    let shared = Shared {
        commands: commands.clone(),
        info,
        agent,
    };
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| Error::io("can't take SIGTERM", error))?;
    let leave = commands.clone();
    tokio::spawn(async move {
        terminate.recv().await;
        if lacks(&driver.probe().await, Capability::Adoption).is_some() {
            // What runs in the guest is asked to end before the machine goes with us.
            let request = StopRequest {
                timeout_ms: LAST_STOP_MS,
                force: true,
            };
            let (reply, stopped) = tokio::sync::oneshot::channel();
            let _ = leave.send(Command::Stop(request, reply));
            let _ = stopped.await;
        }
        let _ = leave.send(Command::Leave);
    });
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        axum::serve(listener, router(shared))
            .with_graceful_shutdown(async move {
                let _ = end.await;
            })
            .await
    });
    let result = actor.run(incoming).await;
    if let Err(error) = &result {
        log.say(&format!("ends: {}", error.chain().join(": ")));
    }
    drop(commands);
    drop(ended);
    let _ = tokio::time::timeout(LAST_WORDS, server).await;
    result
}
