//! `inn rm`: removes VMs and their disks, after asking.

use innkeeper::Host;
use innkeeper::api::{VmInfo, VmState};

use super::{DryRun, Yes};
use crate::confirm::confirm;
use crate::failure::Result;
use crate::many;
use crate::output::{Format, Output};
use crate::units;

/// Remove VMs and their disks
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn rm web
  inn rm web db --yes
  inn rm web --force                   even if it runs: its plug is pulled first")]
pub(crate) struct Args {
    /// VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    /// Remove running ones too: they are killed first
    #[arg(short, long)]
    force: bool,

    #[command(flatten)]
    yes: Yes,

    #[command(flatten)]
    dry_run: DryRun,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        // Names that do not exist are told before anything is asked or removed.
        let (found, mut code) = many::each(&self.names, output, async |name| {
            Ok(host.info(name).await?)
        })
        .await?;
        if found.is_empty() {
            return Ok(code);
        }
        if self.dry_run.dry_run {
            let steps: Vec<String> = found.iter().map(|info| self.step(info)).collect();
            output.dry_run(&steps)?;
            return Ok(code);
        }
        confirm(&question(&found), self.yes.yes)?;
        let names: Vec<String> = found.into_iter().map(|info| info.name).collect();
        let (removed, its_code) = many::each(&names, output, async |name| {
            host.remove(name, self.force).await?;
            Ok(name.to_owned())
        })
        .await?;
        if output.format == Format::Table && !output.quiet {
            for name in &removed {
                output.note(&format!("removed {name}"));
            }
        } else {
            super::show_each(&removed, output, |name| name, String::clone)?;
        }
        code = if code == 0 { its_code } else { code };
        Ok(code)
    }

    fn step(&self, info: &VmInfo) -> String {
        let name = &info.name;
        let disks = units::count(info.disks.len(), "disk");
        if info.protected {
            format!("refuse to remove {name}: it is protected")
        } else if runs(info) && self.force {
            format!("kill {name} and remove it with {disks}")
        } else if runs(info) {
            format!("refuse to remove {name}: it is {}", info.state)
        } else {
            format!("remove {name} with {disks}")
        }
    }
}

/// Returns whether a hypervisor runs for it, or may: one whose keeper is silent has no process id to show.
fn runs(info: &VmInfo) -> bool {
    let at_rest = [
        VmState::Creating,
        VmState::Stopped,
        VmState::Suspended,
        VmState::Failed,
    ];
    info.vmm_pid.is_some() || !at_rest.contains(&info.state)
}

fn question(found: &[VmInfo]) -> String {
    match found {
        [one] => format!("remove {} ({}) and its disks?", one.name, one.state),
        several => {
            let names: Vec<&str> = several.iter().map(|info| info.name.as_str()).collect();
            format!("remove {} and their disks?", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_dry_run_says_what_would_be_refused() {
        let step = |words: &[&str], change: fn(&mut VmInfo)| {
            let mut vm = super::super::sample::vm("web");
            change(&mut vm);
            Command::parse_from(words).args.step(&vm)
        };
        let rm = ["inn", "web"];
        assert_eq!(step(&rm, |_| ()), "refuse to remove web: it is ready");
        let stopped = |vm: &mut VmInfo| {
            vm.state = VmState::Stopped;
            vm.vmm_pid = None;
        };
        assert_eq!(step(&rm, stopped), "remove web with 1 disk");
        assert_eq!(
            step(&rm, |vm| vm.vmm_pid = None),
            "refuse to remove web: it is ready"
        );
        assert_eq!(
            step(&rm, |vm| vm.protected = true),
            "refuse to remove web: it is protected"
        );
        let force = ["inn", "--force", "web"];
        assert_eq!(step(&force, |_| ()), "kill web and remove it with 1 disk");
    }

    #[test]
    fn the_question_names_what_is_lost() {
        let vms = ["a", "b"].map(super::super::sample::vm);
        assert_eq!(question(&vms[..1]), "remove a (ready) and its disks?");
        assert_eq!(question(&vms), "remove a, b and their disks?");
    }
}
