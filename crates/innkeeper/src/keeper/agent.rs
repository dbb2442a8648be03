//! The keeper's end of the channel to the agent: what it tells, and what it is asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use innkeeper_agent::message::{
    AgentEvent, Hello, Interface, Metrics, MountRequest, Readiness, ShutdownKind,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::readiness::CloudInit;
use crate::driver::Machine;
use crate::engine::configure::share_tag;
use crate::guest::{AgentPhase, AgentStatus, ChannelOptions, GuestChannel, relay};
use crate::spec::ShareSpec;

/// How long an agent may take to accept a request before it counts as not accepted.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a guest may take to bring what was added into use.
const ONLINE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before the channel is opened again after it broke.
const OPEN_AGAIN: Duration = Duration::from_millis(200);
/// How often a silence is told anew, with its length.
const SILENCE: Duration = Duration::from_secs(1);

/// What was heard of the agent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum AgentNews {
    /// It said hello: it has just begun, or the guest has rebooted, or we are new.
    Hello {
        version: String,
        hostname: Option<String>,
        os: Option<String>,
    },
    /// The guest's addresses.
    Addresses(Vec<String>),
    /// How far cloud-init is.
    CloudInit(CloudInit),
    /// Whether the agent, as init, still sets the guest up.
    Busy(bool),
    /// Every share was mounted, or it was told why not.
    SharesDone,
    /// It answers again.
    Heard,
    /// It has said nothing for so long.
    Silent(Duration),
    /// The guest is about to end its run; for good, or to begin anew.
    Halting { for_good: bool },
    /// Something went wrong in the guest that somebody should know.
    Problem(String),
}

/// A way to ask the agent. Clones share it.
#[derive(Clone)]
pub(crate) struct AgentLink {
    channel: tokio::sync::watch::Receiver<Option<GuestChannel>>,
}

impl AgentLink {
    /// Opens the channel and keeps it open; the news end when the link is dropped or the machine is gone.
    pub(crate) fn open(
        machine: Arc<dyn Machine>,
        shares: &[ShareSpec],
    ) -> (AgentLink, mpsc::UnboundedReceiver<AgentNews>) {
        let (news, receiver) = mpsc::unbounded_channel();
        let (publish, channel) = tokio::sync::watch::channel(None);
        let mounts = mounts(shares);
        tokio::spawn(async move {
            loop {
                // The machine is gone when nobody takes the news any more.
                if news.is_closed() {
                    return;
                }
                if let Ok(stream) = machine.agent_channel().await {
                    let channel = GuestChannel::start(stream, ChannelOptions::default());
                    publish.send_replace(Some(channel.clone()));
                    listen(&channel, &mounts, &news).await;
                    publish.send_replace(None);
                }
                tokio::select! {
                    () = news.closed() => return,
                    () = tokio::time::sleep(OPEN_AGAIN) => {}
                }
            }
        });
        (AgentLink { channel }, receiver)
    }

    fn channel(&self) -> Option<GuestChannel> {
        self.channel.borrow().clone()
    }

    /// Asks the agent to power the guest off. Errors: why it did not take the request.
    pub(crate) async fn shutdown(&self) -> Result<(), String> {
        let channel = self.channel().ok_or("there is no channel to the agent")?;
        match tokio::time::timeout(ANSWER_TIMEOUT, channel.shutdown(ShutdownKind::Poweroff)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the agent does not answer".to_owned()),
        }
    }

    /// Sets the guest's clock to the host's. Errors: why it was not set.
    pub(crate) async fn set_time(&self) -> Result<(), String> {
        let channel = self.channel().ok_or("there is no channel to the agent")?;
        let set = channel.set_time(std::time::SystemTime::now());
        match tokio::time::timeout(ANSWER_TIMEOUT, set).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the agent does not answer".to_owned()),
        }
    }

    /// Asks the agent to bring CPUs and memory into use that were added, if there is an agent that knows how.
    pub(crate) async fn bring_online(&self, cpus: u32) -> Result<(), String> {
        let Some(channel) = self.channel() else {
            return Ok(());
        };
        let hello = channel.status().borrow().hello.clone();
        if !hello.is_some_and(|hello| hello.features.iter().any(|known| known == "bring-online")) {
            return Ok(());
        }
        match tokio::time::timeout(ONLINE_TIMEOUT, channel.bring_online(cpus)).await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(_) => Err("the agent does not answer".to_owned()),
        }
    }

    /// Asks for the guest's counters.
    pub(crate) async fn metrics(&self) -> Option<Metrics> {
        self.channel()?.metrics().await.ok()
    }

    /// Waits a little until the agent can be asked; none if it does not say hello.
    pub(crate) async fn reached(&self, patience: Duration) -> Option<GuestChannel> {
        let mut channel = self.channel.clone();
        let reach = async {
            let channel = channel.wait_for(Option::is_some).await.ok()?.clone()?;
            channel.ready(patience).await.ok().map(|_| channel)
        };
        tokio::time::timeout(patience, reach).await.ok().flatten()
    }

    /// Carries one client's streams until it goes away.
    pub(crate) async fn relay<T>(channel: &GuestChannel, client: T)
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        relay(channel, client).await;
    }
}

fn mounts(shares: &[ShareSpec]) -> Vec<MountRequest> {
    shares
        .iter()
        .enumerate()
        .map(|(index, share)| MountRequest {
            source: share_tag(index),
            path: share.guest.display().to_string(),
            fstype: "virtiofs".to_owned(),
            read_only: share.read_only,
        })
        .collect()
}

/// Turns what the channel tells into news, until the channel ends or nobody listens.
async fn listen(
    channel: &GuestChannel,
    mounts: &[MountRequest],
    news: &mpsc::UnboundedSender<AgentNews>,
) {
    let mut status = channel.status();
    let mut events = channel.events();
    let mut greeted = 0;
    let mut told = AgentStatus::default();
    loop {
        let now = status.borrow_and_update().clone();
        if let (AgentPhase::Ready, Some(hello)) = (&now.phase, &now.hello)
            && greeted != now.handshakes
        {
            // The same agent too: a link that fell out of step, as after a return from disk, lost what was asked over it.
            greeted = now.handshakes;
            let _ = news.send(greeting(hello));
            welcome(channel.clone(), mounts.to_vec(), news.clone());
        }
        match (&told.phase, &now.phase) {
            (AgentPhase::Silent { .. }, AgentPhase::Ready) => drop(news.send(AgentNews::Heard)),
            (_, AgentPhase::Silent { since }) => {
                drop(news.send(AgentNews::Silent(since.elapsed())))
            }
            (_, AgentPhase::Closed) => return,
            (AgentPhase::Waiting, AgentPhase::Incompatible) => {
                let _ = news.send(AgentNews::Problem(
                    "the agent speaks another version of the protocol".to_owned(),
                ));
            }
            _ => {}
        }
        if now.interfaces != told.interfaces {
            let _ = news.send(AgentNews::Addresses(addresses(&now.interfaces)));
        }
        if let (Some(how), None) = (now.halting, told.halting) {
            let _ = news.send(AgentNews::Halting {
                for_good: how != ShutdownKind::Reboot,
            });
        }
        let silent = matches!(now.phase, AgentPhase::Silent { .. });
        told = now;
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            event = events.recv() => if let Ok(AgentEvent::Readiness(readiness)) = event {
                tell_readiness(&readiness, news);
            },
            () = tokio::time::sleep(SILENCE), if silent => {}
            () = news.closed() => return,
        }
    }
}

fn greeting(hello: &Hello) -> AgentNews {
    let guest = hello.guest.as_ref();
    AgentNews::Hello {
        version: hello.software.clone(),
        hostname: guest
            .map(|guest| guest.hostname.clone())
            .filter(|name| !name.is_empty()),
        os: guest.map(|guest| {
            let kernel = format!("{} {}", guest.system, guest.kernel);
            if guest.distribution.is_empty() {
                kernel
            } else {
                format!("{} ({kernel})", guest.distribution)
            }
        }),
    }
}

/// What an agent that has just come up is asked: how ready its guest is, the right time, and to mount the shares.
fn welcome(
    channel: GuestChannel,
    mounts: Vec<MountRequest>,
    news: mpsc::UnboundedSender<AgentNews>,
) {
    tokio::spawn(async move {
        let started = Instant::now();
        match channel.readiness().await {
            Ok(readiness) => tell_readiness(&readiness, &news),
            Err(error) => drop(news.send(AgentNews::Problem(format!(
                "can't ask how ready the guest is: {error}"
            )))),
        }
        // What the agent told by itself since is newer than an answer, which may be read here after it.
        if let Ok(interfaces) = channel.addresses().await
            && channel.status().borrow().interfaces.is_empty()
        {
            let _ = news.send(AgentNews::Addresses(addresses(&interfaces)));
        }
        for mount in mounts {
            let path = mount.path.clone();
            if let Err(error) = channel.mount(mount).await {
                let after = started.elapsed().as_secs_f64();
                let message =
                    format!("the share at {path} could not be mounted ({after:.1} s): {error}");
                let _ = news.send(AgentNews::Problem(message));
            }
        }
        let _ = news.send(AgentNews::SharesDone);
    });
}

fn tell_readiness(readiness: &Readiness, news: &mpsc::UnboundedSender<AgentNews>) {
    let cloud_init = match &readiness.cloud_init {
        None => CloudInit::Absent,
        Some(state) if !state.done => CloudInit::Running,
        Some(state) if state.errors.is_empty() => CloudInit::Done,
        Some(state) => CloudInit::Failed(state.errors.clone()),
    };
    let _ = news.send(AgentNews::CloudInit(cloud_init));
    let _ = news.send(AgentNews::Busy(readiness.busy));
    for problem in &readiness.problems {
        let _ = news.send(AgentNews::Problem(problem.clone()));
    }
}

/// Returns the addresses that lead to the guest: no loopback, no link-local ones, without prefix lengths.
fn addresses(interfaces: &[Interface]) -> Vec<String> {
    interfaces
        .iter()
        .flat_map(|interface| &interface.addresses)
        .filter_map(|address| address.split('/').next())
        .filter_map(|address| address.parse::<std::net::IpAddr>().ok())
        .filter(|address| match address {
            std::net::IpAddr::V4(address) => !address.is_link_local() && !address.is_loopback(),
            std::net::IpAddr::V6(address) => {
                !address.is_unicast_link_local() && !address.is_loopback()
            }
        })
        .map(|address| address.to_string())
        .collect()
}
