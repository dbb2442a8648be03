//! `inn events`: what happened, oldest first.

use innkeeper::Host;
use innkeeper::api::{Event, EventKind};

use crate::failure::Result;
use crate::output::Output;
use crate::{terminal_text, units};

/// Show what happened to VMs and images
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn events
  inn events web -n 20
  inn events -f -o json                a line of JSON for each, as it happens")]
pub(crate) struct Args {
    /// Only this VM's
    name: Option<String>,

    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,

    /// Only the last ones
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let vm = self.name.as_deref();
        let mut events = Vec::new();
        // Following begins with what happens from now on, unless some of the past is asked for.
        if !self.follow || self.lines.is_some() {
            events = host.events(vm)?;
            let last = self.lines.unwrap_or(events.len()).min(events.len());
            events.drain(..events.len() - last);
        }
        if !self.follow {
            output.data(&events, || events.iter().map(line).collect())?;
            return Ok(0);
        }
        for event in &events {
            output.piece(event, || line(event))?;
        }
        let mut written = Ok(());
        let mut show = |event: Event| {
            written = output.piece(&event, || line(&event));
            written.is_ok()
        };
        host.follow_events(vm, &mut show).await?;
        written.map(|()| 0)
    }
}

fn line(event: &Event) -> String {
    let vm = event.vm.as_deref().unwrap_or("-");
    let what = terminal_text::one_line(&what(&event.kind));
    format!("{}  {vm}  {what}\n", event.time)
}

fn what(kind: &EventKind) -> String {
    match kind {
        EventKind::Created { driver } => format!("created for {driver}"),
        EventKind::State { from, to, reason } => {
            let reason = reason.as_ref().map(|reason| format!(": {reason}"));
            format!("{from} -> {to}{}", reason.unwrap_or_default())
        }
        EventKind::GuestReboot => "the guest rebooted".to_owned(),
        EventKind::AgentHello { version } => format!("agent {version} said hello"),
        EventKind::AgentSilent { seconds } => {
            format!("agent silent for {}", units::seconds(*seconds))
        }
        EventKind::Adopted { vmm_pid } => format!("hypervisor {vmm_pid} adopted"),
        EventKind::StopRequested { force: false } => "asked to stop".to_owned(),
        EventKind::StopRequested { force: true } => {
            "asked to stop, to be killed if it does not".to_owned()
        }
        EventKind::SpecChanged { fields } => format!("spec changed: {}", fields.join(", ")),
        EventKind::Renamed { from } => format!("renamed from {from}"),
        EventKind::Removed => "removed".to_owned(),
        EventKind::ImageAdded { image } => format!("image {image} added"),
        EventKind::ImageRemoved { image } => format!("image {image} removed"),
        EventKind::Note { message } => message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use innkeeper::api::VmState;

    #[test]
    fn an_event_is_a_line() {
        let event = Event {
            time: "2026-11-21T07:00:00.123Z".into(),
            vm: Some("web".into()),
            kind: EventKind::State {
                from: VmState::Running,
                to: VmState::Failed,
                reason: Some("line\nbreak".into()),
            },
        };
        assert_eq!(
            line(&event),
            "2026-11-21T07:00:00.123Z  web  running -> failed: line\\nbreak\n"
        );
    }
}
