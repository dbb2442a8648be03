//! Trials of vsock: programs of the guest and of the host reach each other by port, whatever carries it.
//!
//! The program in the guest is the agent's own, which joins a port to its standard input and output (`inn-agent --vsock-accept PORT`).

use std::time::Instant;

use innkeeper_agent::message::{ExecRequest, VsockStatus};
use innkeeper_api::{Capability, ErrorKind, VmInfo};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::context::{Context, refused};
use super::{Failure, Verdict, require};
use crate::guest::{ExecSession, GuestChannel};

/// The agent, as the init of the guest.
const PROGRAM: &str = "/proc/1/exe";

/// Starts a VM that asks for vsock.
async fn ready(context: &Context, name: &str) -> Verdict<VmInfo> {
    let mut spec = context.spec();
    super::absence::ask(&mut spec, Capability::Vsock, context.host.home());
    context.create(name, spec).await?;
    context.start_ready(name).await
}

/// Runs the agent's program in the guest, and returns it with its first status.
async fn program(channel: &GuestChannel, words: &[&str]) -> Verdict<(ExecSession, VsockStatus)> {
    let argv = std::iter::once(&PROGRAM).chain(words);
    let request = ExecRequest {
        argv: argv.map(|word| (*word).to_owned()).collect(),
        ..ExecRequest::default()
    };
    let mut session = channel.exec(request).await?;
    let mut line = String::new();
    BufReader::new(&mut session.stderr)
        .read_line(&mut line)
        .await?;
    let status = serde_json::from_str(&line)
        .map_err(|error| Failure::new(format!("{words:?} said {line:?}: {error}")))?;
    Ok((session, status))
}

pub(super) async fn vsock_reaches_programs_of_the_guest(context: &Context) -> Verdict {
    ready(context, "listens").await?;
    let channel = context.host.guest("listens").await?;
    let (mut guest, status) = program(&channel, &["--vsock-accept", "5000"]).await?;
    require!(status == VsockStatus::Listening, "the guest is {status:?}");
    let work = async {
        let mut host = context.host.vsock_connect("listens", 5000).await?;
        // Shut at once, and the answer must come all the same.
        host.write_all(b"question").await?;
        host.shutdown().await?;
        let mut question = vec![0; 8];
        guest.stdout.read_exact(&mut question).await?;
        let answer = super::inside::noise(1 << 20);
        let (mut stdin, sent) = (guest.stdin, answer.clone());
        let answering = async {
            stdin.write_all(&sent).await?;
            stdin.shutdown().await
        };
        let mut received = Vec::new();
        let (answered, read) = tokio::join!(answering, host.read_to_end(&mut received));
        answered?;
        read?;
        require!(question == b"question", "the guest read {question:?}");
        require!(
            received == answer,
            "{} of {} bytes came, or others",
            received.len(),
            answer.len()
        );
        Ok(())
    };
    context.within("a question and its answer", work).await??;
    let nobody = context.host.vsock_connect("listens", 5001).await;
    refused(
        "a port without a listener",
        nobody,
        ErrorKind::Unreachable,
        &["5001"],
    )?;
    context.host.kill("listens").await?;
    Ok(())
}

pub(super) async fn the_guest_reaches_programs_of_the_host_by_vsock(context: &Context) -> Verdict {
    ready(context, "calls").await?;
    let channel = context.host.guest("calls").await?;
    // Twice, one connection after the other: between them the port must not be closed for good.
    for word in ["first", "second"] {
        let answering = async {
            let mut host = context.host.vsock_accept("calls", 6000).await?;
            let mut question = Vec::new();
            let mut buffer = [0; 64];
            while question.len() < word.len() {
                let count = host.read(&mut buffer).await?;
                require!(count > 0, "the guest's words end after {question:?}");
                question.extend_from_slice(&buffer[..count]);
            }
            host.write_all(&question).await?;
            Verdict::Ok(())
        };
        let asking = async {
            let started = Instant::now();
            // poll: the host listens; by a device it is context id 2, by the agent 1
            let mut guest = loop {
                let (guest, status) = connect(&channel).await?;
                if status == VsockStatus::Connected {
                    break guest;
                }
                require!(
                    started.elapsed() < context.setup.patience,
                    "the guest does not reach the host: {status:?}"
                );
            };
            guest.stdin.write_all(word.as_bytes()).await?;
            let mut answer = vec![0; word.len()];
            guest.stdout.read_exact(&mut answer).await?;
            require!(answer == word.as_bytes(), "the answer is {answer:?}");
            Verdict::Ok(())
        };
        context
            .within("a connection of the guest", async {
                tokio::try_join!(answering, asking)
            })
            .await??;
    }
    context.host.kill("calls").await?;
    Ok(())
}

/// Lets a program of the guest connect to the host, by the one way or the other.
async fn connect(channel: &GuestChannel) -> Verdict<(ExecSession, VsockStatus)> {
    let (guest, status) = program(channel, &["--vsock-connect", "6000", "2"]).await?;
    if status == VsockStatus::Connected {
        return Ok((guest, status));
    }
    program(channel, &["--vsock-connect", "6000", "1"]).await
}
