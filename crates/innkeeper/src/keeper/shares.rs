//! Shared folders as the guest has them: mounted when its agent can be asked and the devices are there, unmounted before the machine is
//! saved.
//!
//! ```text
//!  devices put in ─► let_mount ─► (hello) ─► mounted            a guest that boots, or comes back
//!  suspend: hold ─► unmount each ─► in use? ─► mounted again, refused with what uses it
//!                                      └─ no ─► (devices taken out, saved; or put back) ─► let_mount, mount_again
//! ```
//!
//! What a guest tells of its processes is shown to people: it is bounded, and no control character of it reaches a terminal.

use std::sync::Arc;
use std::time::Duration;

use innkeeper_agent::message::{MountRequest, MountUse, MountUser, MountUsers, UnmountRequest};
use innkeeper_api::ErrorKind;
use tokio::sync::{Mutex, mpsc, watch};

use super::agent::AgentNews;
use crate::engine::configure::share_tag;
use crate::error::{Error, Result};
use crate::guest::GuestChannel;
use crate::spec::ShareSpec;

/// How long a guest may take to unmount a folder, or to mount it again: what it has not written yet is written first.
const TIMEOUT: Duration = Duration::from_secs(15);

/// How many users of a folder are named.
const NAMED: usize = 8;

/// No more of a name or path from the guest is shown, in characters.
const LONGEST: usize = 200;

/// The shared folders of a run. Clones share it.
#[derive(Clone)]
pub(super) struct Shares {
    mounts: Arc<Vec<MountRequest>>,
    /// Whether the devices are there, so that they can be mounted.
    open: Arc<watch::Sender<bool>>,
    /// Held while they are mounted or unmounted.
    turn: Arc<Mutex<()>>,
}

impl Shares {
    pub(super) fn new(shares: &[ShareSpec]) -> Self {
        let mounts = shares
            .iter()
            .enumerate()
            .map(|(index, share)| MountRequest {
                source: share_tag(index),
                path: share.guest.display().to_string(),
                fstype: "virtiofs".to_owned(),
                read_only: share.read_only,
            })
            .collect();
        Shares {
            mounts: Arc::new(mounts),
            open: Arc::new(watch::Sender::new(false)),
            turn: Arc::default(),
        }
    }

    /// Lets them be mounted from now on.
    pub(super) fn let_mount(&self) {
        self.open.send_replace(true);
    }

    /// Waits until they may be mounted, which is when the devices have been put in.
    pub(super) async fn until_open(&self) {
        // The sender is ours.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }

    /// Mounts each of them as soon as they may be, and tells of those that could not be.
    pub(super) async fn mount(
        &self,
        channel: &GuestChannel,
        news: &mpsc::UnboundedSender<AgentNews>,
    ) {
        self.until_open().await;
        let _turn = self.turn.lock().await;
        // If a suspend was quicker, whoever ends it mounts them.
        if *self.open.borrow() {
            self.mount_now(channel, news).await;
        }
    }

    async fn mount_now(&self, channel: &GuestChannel, news: &mpsc::UnboundedSender<AgentNews>) {
        for mount in self.mounts.iter() {
            if let Err(error) = channel.mount(mount.clone()).await {
                let message = format!("the share at {} could not be mounted: {error}", mount.path);
                let _ = news.send(AgentNews::Problem(message));
            }
        }
    }

    /// Unmounts all of them, or none; until `let_mount` they are not mounted again.
    ///
    /// Errors: `Conflict` naming what uses them, `Unsupported` without an agent that knows how, `TimedOut`.
    pub(super) async fn unmount(
        &self,
        channel: Option<GuestChannel>,
        news: &mpsc::UnboundedSender<AgentNews>,
    ) -> Result<()> {
        let hello = channel
            .as_ref()
            .and_then(|channel| channel.status().borrow().hello.clone());
        let knows =
            hello.is_some_and(|hello| hello.features.iter().any(|known| known == "unmount"));
        let Some(channel) = channel.filter(|_| knows) else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "shares: they must be unmounted first, and the guest has no agent that can be asked to",
            )
            .with_hint("stop it instead; or see `inn doctor` for why its agent does not answer"));
        };
        let _turn = self.turn.lock().await;
        self.open.send_replace(false);
        let mut used = Vec::new();
        for mount in self.mounts.iter() {
            let request = UnmountRequest {
                source: mount.source.clone(),
                path: mount.path.clone(),
            };
            let failed = match tokio::time::timeout(TIMEOUT, channel.unmount(request)).await {
                Ok(Ok(users)) if users.in_use => {
                    used.push(told(&mount.path, &users));
                    continue;
                }
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => Error::new(
                    ErrorKind::Failure,
                    format!(
                        "shares: {} could not be unmounted in the guest: {error}",
                        mount.path
                    ),
                ),
                Err(_) => Error::new(
                    ErrorKind::TimedOut,
                    format!(
                        "shares: {} was not unmounted in the guest within {} s",
                        mount.path,
                        TIMEOUT.as_secs()
                    ),
                ),
            };
            self.mount_after_all(&channel, news).await;
            return Err(failed);
        }
        if used.is_empty() {
            return Ok(());
        }
        self.mount_after_all(&channel, news).await;
        Err(Error::new(
            ErrorKind::Conflict,
            format!("shares: in use in the guest: {}", used.join("; ")),
        )
        .with_hint("close what uses them, and suspend it again; or stop it instead"))
    }

    async fn mount_after_all(
        &self,
        channel: &GuestChannel,
        news: &mpsc::UnboundedSender<AgentNews>,
    ) {
        self.let_mount();
        if tokio::time::timeout(TIMEOUT, self.mount_now(channel, news))
            .await
            .is_err()
        {
            let message = "the shares were not mounted again in time".to_owned();
            let _ = news.send(AgentNews::Problem(message));
        }
    }

    /// Mounts them after a suspend that came to nothing.
    pub(super) async fn mount_again(
        &self,
        channel: Option<GuestChannel>,
        news: &mpsc::UnboundedSender<AgentNews>,
    ) {
        let _turn = self.turn.lock().await;
        match channel {
            Some(channel) => self.mount_after_all(&channel, news).await,
            // They are when its agent says hello.
            None => self.let_mount(),
        }
    }
}

/// Says what uses a folder.
fn told(path: &str, users: &MountUsers) -> String {
    if users.users.is_empty() {
        return format!("{path}, by something that its agent can't see");
    }
    let mut named: Vec<String> = users.users.iter().take(NAMED).map(user).collect();
    let rest = users.users.len().saturating_sub(NAMED);
    if users.more {
        named.push("and more".to_owned());
    } else if rest > 0 {
        named.push(format!("and {rest} more"));
    }
    format!("{path} ({})", named.join(", "))
}

fn user(user: &MountUser) -> String {
    let path = plain(&user.path);
    let process = match user.pid {
        Some(pid) => format!("{} (process {pid})", plain(&user.command)),
        None => "the guest".to_owned(),
    };
    match user.what {
        MountUse::OpenFile => format!("{process} has {path} open"),
        MountUse::WorkingDirectory => format!("{process} works in {path}"),
        MountUse::Root => format!("{process} has {path} as its root"),
        MountUse::MappedFile => format!("{process} runs or maps {path}"),
        MountUse::Mount => format!("{process} has it or something in it mounted at {path}"),
        MountUse::Other => format!("{process} uses {path}"),
    }
}

/// Makes text from a guest fit to be shown.
fn plain(text: &str) -> String {
    text.chars()
        .take(LONGEST)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_tells_is_bounded_and_without_control_characters() {
        let hostile = MountUser {
            pid: Some(7),
            command: "a\u{1b}[2Jb".to_owned(),
            what: MountUse::OpenFile,
            path: "/work/".to_owned() + &"x".repeat(9000),
        };
        let users = MountUsers {
            in_use: true,
            users: vec![hostile; 12],
            more: false,
        };
        let text = told("/work", &users);
        assert!(
            text.starts_with("/work (a?[2Jb (process 7) has /work/x"),
            "{text}"
        );
        assert!(
            text.ends_with(", and 4 more)") && text.len() < 3000,
            "{}",
            text.len()
        );
        let nobody = told(
            "/work",
            &MountUsers {
                in_use: true,
                ..MountUsers::default()
            },
        );
        assert!(nobody.contains("can't see"), "{nobody}");
    }
}
