//! Trials of consoles that can be typed at.

use innkeeper_api::{ErrorKind, VmInfo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::context::{Context, kill_process, refused};
use super::{Verdict, require};
use crate::driver::Channel;
use crate::spec::ConsoleSpec;

/// A VM with a console that is kept in a log and one that is not, at which somebody in the guest says back what is typed.
async fn talking(context: &Context, name: &str) -> Verdict<VmInfo> {
    let console = |name: &str, log| ConsoleSpec {
        name: name.to_owned(),
        log,
    };
    let mut spec = context.spec();
    spec.consoles = vec![console("shell", false), console("audit", true)];
    context.create(name, spec).await?;
    let info = context.start_ready(name).await?;
    for console in ["shell", "audit"] {
        let guest = &context.setup.guest;
        guest.echoes(&context.host, &info, console).await?;
    }
    Ok(info)
}

/// Types a line and waits until it comes back. A terminal in the guest may make the end of a line two characters.
async fn says_back(context: &Context, console: &mut dyn Channel, line: &str) -> Verdict {
    let talk = async {
        console.write_all(format!("{line}\n").as_bytes()).await?;
        let mut said = Vec::new();
        let mut buffer = [0; 256];
        while !String::from_utf8_lossy(&said).contains(line) {
            let count = console.read(&mut buffer).await?;
            require!(count > 0, "the console ended before {line:?} came back");
            said.extend_from_slice(&buffer[..count]);
            require!(said.len() < 64 << 10, "{line:?} does not come back");
        }
        Ok(())
    };
    context
        .within(&format!("an answer to {line:?}"), talk)
        .await?
}

pub(super) async fn consoles_say_back_what_is_typed(context: &Context) -> Verdict {
    let name = "talks";
    let info = talking(context, name).await?;
    for console in ["shell", "audit"] {
        let mut open = context.host.console(name, console).await?;
        says_back(context, open.as_mut(), &format!("one-{console}")).await?;
        says_back(context, open.as_mut(), &format!("two-{console}")).await?;
    }
    let logs = std::path::Path::new(&info.directory).join("log");
    let kept = logs.join("console-audit.log");
    context
        .eventually("what the guest wrote to a console with a log", || {
            std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("two-audit"))
        })
        .await?;
    let text = std::fs::read_to_string(&kept)?;
    require!(
        !text.contains("-shell"),
        "the log of one console holds what was said at another: {text:?}"
    );
    require!(
        !logs.join("console-shell.log").exists(),
        "a console without a log is kept"
    );
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn a_second_client_of_a_console_replaces_the_first(context: &Context) -> Verdict {
    let name = "shared";
    let info = talking(context, name).await?;
    let mut first = context.host.console(name, "shell").await?;
    says_back(context, first.as_mut(), "from-the-first").await?;
    let mut second = context.host.console(name, "shell").await?;
    let ended = async {
        let mut buffer = [0; 256];
        // What came before the end may stand before it; a connection that was cut is an end as well.
        while matches!(first.read(&mut buffer).await, Ok(1..)) {}
    };
    context.within("the end of the first client", ended).await?;
    says_back(context, second.as_mut(), "from-the-second").await?;
    // A console goes through the keeper; the next keeper opens it anew.
    kill_process(context, info.keeper_pid).await?;
    context
        .until(name, "as before", |after| after.state == info.state)
        .await?;
    let mut third = context.host.console(name, "shell").await?;
    says_back(context, third.as_mut(), "after-the-keeper").await?;
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn a_console_that_is_not_there_is_refused(context: &Context) -> Verdict {
    let name = "quiet";
    let mut spec = context.spec();
    spec.consoles = vec![ConsoleSpec {
        name: "shell".to_owned(),
        log: false,
    }];
    context.create(name, spec).await?;
    let open = async |console: &str| context.host.console(name, console).await.map(drop);
    refused(
        "a console of what does not run",
        open("shell").await,
        ErrorKind::Conflict,
        &[name],
    )?;
    context.start(name).await?;
    // Those that there are stand in the message.
    refused(
        "a console that its spec does not name",
        open("other").await,
        ErrorKind::NotFound,
        &["other", "serial", "shell"],
    )?;
    for odd in ["", "../serial", "shell\n", "Shell"] {
        let opened = open(odd).await;
        refused("an odd name", opened, ErrorKind::BadInput, &[])?;
    }
    open("shell").await?;
    context.host.kill(name).await?;
    Ok(())
}
