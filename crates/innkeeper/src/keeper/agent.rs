//! The keeper's end of the channel to the agent: what it tells, and what it is asked.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use innkeeper_agent::message::{
    AgentEvent, Hello, Interface, Metrics, Readiness, ShutdownKind, VsockDirection,
};
use innkeeper_api::ErrorKind;
use innkeeper_net::MacAddr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::readiness::CloudInit;
use super::shares::Shares;
use crate::driver::Machine;
use crate::error::{Error, Result};
use crate::guest::{AgentPhase, AgentStatus, ChannelOptions, GuestChannel, VsockOpening, relay};
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
    shares: Shares,
    news: mpsc::UnboundedSender<AgentNews>,
}

impl AgentLink {
    /// Opens the channel and keeps it open; the news end when nobody takes them. The shares are mounted from `let_mount` on.
    pub(crate) fn open(
        machine: Arc<dyn Machine>,
        shares: &[ShareSpec],
    ) -> (AgentLink, mpsc::UnboundedReceiver<AgentNews>) {
        let (news, receiver) = mpsc::unbounded_channel();
        let (publish, channel) = tokio::sync::watch::channel(None);
        let shares = Shares::new(shares);
        let link = AgentLink {
            channel,
            shares: shares.clone(),
            news: news.clone(),
        };
        tokio::spawn(async move {
            loop {
                // The machine is gone when nobody takes the news any more.
                if news.is_closed() {
                    return;
                }
                if let Ok(stream) = machine.agent_channel().await {
                    let channel = GuestChannel::start(stream, ChannelOptions::default());
                    publish.send_replace(Some(channel.clone()));
                    listen(&channel, &shares, &news).await;
                    publish.send_replace(None);
                }
                tokio::select! {
                    () = news.closed() => return,
                    () = tokio::time::sleep(OPEN_AGAIN) => {}
                }
            }
        });
        (link, receiver)
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

    /// Lets the shares be mounted: their devices are there.
    pub(crate) fn let_mount(&self) {
        self.shares.let_mount();
    }

    /// Waits until the shares' devices are there, or it is known that they can't be.
    pub(crate) async fn until_shares_are_there(&self) {
        self.shares.until_open().await;
    }

    /// Unmounts all shares, or none. Errors: why they can't be, with what uses them.
    pub(crate) async fn unmount_shares(&self) -> Result<(), Error> {
        self.shares.unmount(self.channel(), &self.news).await
    }

    /// Mounts the shares after they were unmounted for nothing.
    pub(crate) async fn mount_shares_again(&self) {
        self.shares.mount_again(self.channel(), &self.news).await;
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

    /// Begins to join a vsock port of a guest that has no vsock device; with `Accept` the agent listens when this returns.
    ///
    /// Errors: `Unreachable` if the agent does not say hello; else those of [`GuestChannel::vsock`].
    pub(crate) async fn vsock(&self, direction: VsockDirection, port: u32) -> Result<VsockOpening> {
        let Some(channel) = self.reached(ANSWER_TIMEOUT).await else {
            return Err(Error::new(
                ErrorKind::Unreachable,
                "this machine has no vsock device, and the agent in the guest, which would join the port, has not said hello",
            ));
        };
        channel.vsock(direction, port).await
    }

    /// Carries one client's streams until it goes away.
    pub(crate) async fn relay<T>(channel: &GuestChannel, client: T)
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        relay(channel, client).await;
    }
}

/// Turns what the channel tells into news, until the channel ends or nobody listens.
async fn listen(channel: &GuestChannel, shares: &Shares, news: &mpsc::UnboundedSender<AgentNews>) {
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
            welcome(channel.clone(), shares.clone(), news.clone());
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
fn welcome(channel: GuestChannel, shares: Shares, news: mpsc::UnboundedSender<AgentNews>) {
    tokio::spawn(async move {
        // Both at once: a guest that has just come back from disk under emulation takes long for every answer.
        let (readiness, interfaces) = tokio::join!(channel.readiness(), channel.addresses());
        // Addresses first: who waits until it is ready wants to know where.
        if let Ok(answered) = interfaces {
            // What the agent told by itself since is newer than an answer, which may be read here after it.
            let told = channel.status().borrow().interfaces.clone();
            let interfaces = if told.is_empty() { answered } else { told };
            let _ = news.send(AgentNews::Addresses(addresses(&interfaces)));
        }
        match readiness {
            Ok(readiness) => tell_readiness(&readiness, &news),
            Err(error) => drop(news.send(AgentNews::Problem(format!(
                "can't ask how ready the guest is: {error}"
            )))),
        }
        shares.mount(&channel, &news).await;
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

/// Returns the addresses that lead to the guest, without prefix lengths: no loopback, and no link-local ones but those that we gave.
fn addresses(interfaces: &[Interface]) -> Vec<String> {
    let mut found = Vec::new();
    for interface in interfaces {
        let mac: Option<MacAddr> = interface.mac.parse().ok();
        let leads = |address: &IpAddr| match address {
            IpAddr::V4(address) => {
                let ours = mac.is_some_and(|mac| mac.link_local() == *address);
                ours || (!address.is_link_local() && !address.is_loopback())
            }
            IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_loopback(),
        };
        let addresses = interface.addresses.iter();
        let parsed = addresses.filter_map(|address| address.split('/').next()?.parse().ok());
        found.extend(parsed.filter(leads).map(|address| address.to_string()));
    }
    found
}

#[cfg(test)]
mod address_tests {
    use super::*;

    #[test]
    fn what_leads_to_the_guest_is_told() {
        let mac: MacAddr = "52:54:00:00:00:01".parse().unwrap();
        let ours = mac.link_local().to_string();
        let interface = |addresses: &[&str]| Interface {
            name: "eth0".to_owned(),
            mac: mac.to_string(),
            up: true,
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
        };
        let given = format!("{ours}/16");
        let told = addresses(&[
            interface(&[
                "127.0.0.1/8",
                "169.254.0.9/16",
                "fe80::1/64",
                "10.0.2.15/24",
            ]),
            interface(&[&given, "2001:db8::1/64", "nonsense"]),
        ]);
        assert_eq!(told, ["10.0.2.15", ours.as_str(), "2001:db8::1"]);
    }
}
