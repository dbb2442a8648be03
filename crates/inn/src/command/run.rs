//! `inn run`: a new VM, started, ready, and with a command in it if one is given. An image of a registry brings its own command: that runs in
//! the foreground, as it says itself (user, variables, directory), and ours stands in for the image's where one is given.
//!
//! ```text
//!  create ──► start ──► wait until ready ──► command, if any ──► remove, with --rm
//!     └──────────┴── Ctrl-C: what is left, in which state, is told; exit 130
//! ```

use std::cell::Cell;

use innkeeper::api::{ErrorKind, VmInfo};
use innkeeper::guest::message::ExecRequest;
use innkeeper::spec::VmSpec;
use innkeeper::{Error, Host};

use super::exec::HowFlags;
use super::{DryRun, ReadyFlags, explain, is_up};
use crate::failure::{EXIT_OUR_FAILURE, Failure, Result};
use crate::output::Output;
use crate::reporter::Reporter;
use crate::spec_flags::SpecFlags;

/// Make a VM, start it, and wait until it is ready; with a command, run that in it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn run debian:12
  inn run debian:12 --name web --cpus 4 --memory 2GiB --disk-size 20GiB -p 8080:80 -v ./site:/var/www:ro
  inn run tiny --rm -- uname -a        a VM for one command, whose exit code is ours
  inn run oci:localhost:5000/web:1 -p 8080:80      a registry's image, with what it runs
  inn run oci:localhost:5000/tool:1 --rm -- --help its entrypoint with other arguments
  inn run -f vm.yaml")]
pub(crate) struct Args {
    #[command(flatten)]
    spec: SpecFlags,

    /// Name; made from the image if none is given
    #[arg(short, long)]
    name: Option<String>,

    #[command(flatten)]
    ready: ReadyFlags,

    /// Remove the VM after the command, whatever came of it
    #[arg(long)]
    rm: bool,

    #[command(flatten)]
    how: HowFlags,

    /// Command that is run in it once it is ready; for a registry's image, what follows its entrypoint
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "no_wait")]
    command: Vec<String>,

    #[command(flatten)]
    dry_run: DryRun,
}

impl Args {
    pub(crate) async fn run(mut self, host: &Host, output: &Output) -> Result<u8> {
        let spec = self.spec.spec()?;
        let has_workload = match &spec.image {
            Some(image) => host.has_workload(image)?,
            None => false,
        };
        self.check(has_workload)?;
        let name = match self.name.take() {
            Some(name) => name,
            None => host.name_for(spec.image.as_deref())?,
        };
        if self.dry_run.dry_run {
            let plan = host.plan_create(&name, &spec).await?;
            return explain::show(&plan, &format!("would create and start {name}"), output);
        }
        let created = Cell::new(false);
        let runs_command = self.runs_command(has_workload);
        let result = self
            .up_and_run(&name, spec, runs_command, &created, host, output)
            .await;
        if self.rm
            && created.get()
            && let Err(error) = host.remove(&name, true).await
        {
            let failure = Failure::from(error.while_doing(format!("removing {name}")));
            // The command's own failure is told too; this one comes first.
            let code = failure.with_code(EXIT_OUR_FAILURE).tell(output.is_json());
            return result.and(Ok(code));
        }
        result
    }

    /// Whether the run ends with a command of somebody's.
    fn runs_command(&self, has_workload: bool) -> bool {
        !self.command.is_empty() || (has_workload && !self.ready.no_wait)
    }

    fn check(&self, has_workload: bool) -> Result<()> {
        match self.rm && !self.runs_command(has_workload) {
            true => Err(Error::new(
                ErrorKind::BadInput,
                "--rm removes the VM after a command, and there is none",
            )
            .with_hint("give one after --")
            .into()),
            false => Ok(()),
        }
    }

    async fn up_and_run(
        &self,
        name: &str,
        spec: VmSpec,
        runs_command: bool,
        created: &Cell<bool>,
        host: &Host,
        output: &Output,
    ) -> Result<u8> {
        let reporter = Reporter::new(output);
        let up = tokio::select! {
            up = self.bring_up(name, spec, created, host, &reporter) => Some(up),
            _ = tokio::signal::ctrl_c() => None,
        };
        reporter.finish();
        let Some(up) = up else {
            return Err(self.interrupted(name, created, host).await);
        };
        if !runs_command {
            let info = up?;
            output.outcome(name, &info, || greeting(&info))?;
            return Ok(0);
        }
        let ours = |failure: Failure| failure.with_code(EXIT_OUR_FAILURE);
        up.map_err(ours)?;
        let own = host.workload(name, &self.command);
        let request = own.map_err(|error| ours(error.into()))?;
        let request = request.unwrap_or_else(|| ExecRequest {
            argv: self.command.clone(),
            ..ExecRequest::default()
        });
        self.how.run(host, name, request).await
    }

    async fn bring_up(
        &self,
        name: &str,
        spec: VmSpec,
        created: &Cell<bool>,
        host: &Host,
        reporter: &Reporter,
    ) -> Result<VmInfo> {
        host.create(name, spec, reporter).await.map_err(|error| {
            match (error.kind(), error.hint()) {
                (ErrorKind::Conflict, None) => error.with_hint(format!("inn start {name}")),
                _ => error,
            }
        })?;
        created.set(true);
        host.start(name).await?;
        self.ready.wait(host, name, reporter).await
    }

    /// Says what an interrupt left behind.
    async fn interrupted(&self, name: &str, created: &Cell<bool>, host: &Host) -> Failure {
        let left = match host.info(name).await {
            _ if self.rm && created.get() => format!("{name} is removed"),
            Ok(info) if created.get() => format!("{name} is left, and is {}", info.state),
            _ => format!("nothing is left of {name}"),
        };
        let error = Error::new(ErrorKind::Interrupted, format!("interrupted: {left}"));
        match created.get() && !self.rm {
            true => error
                .with_hint(format!(
                    "inn wait {name} goes on waiting, inn rm --force {name} removes it"
                ))
                .into(),
            false => error.into(),
        }
    }
}

/// What is said of a VM that has just come up.
fn greeting(info: &VmInfo) -> String {
    format!(
        "{}\ninn shell {} opens a shell in it",
        is_up(info),
        info.name
    )
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
    fn the_command_comes_after_the_dashes() {
        let command = Command::try_parse_from(["run", "tiny", "--rm", "--", "ls", "-l"]).unwrap();
        assert_eq!(command.args.command, ["ls", "-l"]);
        for words in [
            &["run", "tiny", "ls"][..],
            &["run", "tiny", "--no-wait", "--", "ls"],
        ] {
            assert!(Command::try_parse_from(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn a_vm_is_removed_only_after_a_command() {
        let read = |words: &[&str]| Command::try_parse_from(words).unwrap().args;
        let bare = read(&["run", "tiny", "--rm"]);
        assert!(bare.check(false).is_err() && bare.check(true).is_ok());
        assert!(!bare.runs_command(false) && bare.runs_command(true));
        let waiting = read(&["run", "tiny", "--no-wait"]);
        assert!(!waiting.runs_command(true));
    }

    #[test]
    fn greets_with_what_to_do_next() {
        insta::assert_snapshot!(greeting(&super::super::sample::vm("web")));
    }
}
