//! The agent's channel by Cloud Hypervisor's vsock: the double's device, and behind it a real agent that is a process of the test.
//!
//! What is not shown here: the agent's own listener in a Linux guest, and the real device. A Linux guest of the real one needs a KVM that runs it.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use innkeeper::api::ErrorKind;
use innkeeper::driver::{Machine, MachineEvent};
use innkeeper::guest::message::{ExecRequest, ExitStatus};
use innkeeper::guest::{ChannelOptions, GuestChannel};
use innkeeper_testbed::agent_program;
use tokio::io::AsyncReadExt;

use crate::bench::{Bench, DEADLINE, next, until};

/// A real agent, ended with the test.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts an agent "in the guest" of a bench; none, having said why, where there is no agent.
fn agent(bench: &Bench) -> Option<Agent> {
    let program = match agent_program() {
        Ok(program) => program,
        Err(why) => {
            println!("SKIPPED: {why}");
            return None;
        }
    };
    let child = Command::new(program)
        .arg("--connect")
        .arg(format!("unix:{}", bench.at("bin/guest.sock").display()))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    Some(Agent(child))
}

async fn channel(machine: &dyn Machine) -> GuestChannel {
    let started = Instant::now();
    loop {
        match machine.agent_channel().await {
            Ok(stream) => return GuestChannel::start(stream, ChannelOptions::default()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unreachable);
                assert!(started.elapsed() < DEADLINE, "{error}");
            }
        }
        // poll: the agent waits behind the device
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Runs a command by a channel.
async fn says(channel: &GuestChannel, words: &str) {
    channel.ready(DEADLINE).await.unwrap();
    let mut session = channel
        .exec(ExecRequest {
            argv: vec!["echo".to_owned(), words.to_owned()],
            ..ExecRequest::default()
        })
        .await
        .unwrap();
    let mut output = String::new();
    session.stdout.read_to_string(&mut output).await.unwrap();
    assert_eq!(output.trim_end(), words);
    assert_eq!(session.wait().await.unwrap(), ExitStatus::Code(0));
}

#[tokio::test]
async fn the_agent_is_reached_and_a_new_channel_replaces_the_old() {
    let bench = Bench::fake("agent=listens");
    let running = bench.launch().await;
    let Some(agent) = agent(&bench) else {
        bench.end(running).await;
        return;
    };
    let first = channel(running.machine.as_ref()).await;
    says(&first, "one").await;
    let second = channel(running.machine.as_ref()).await;
    says(&second, "two").await;
    let closed = first.status();
    until("the end of the first channel", || {
        closed.borrow().phase == innkeeper::guest::AgentPhase::Closed
    })
    .await;
    drop((first, second));
    let again = channel(running.machine.as_ref()).await;
    says(&again, "three").await;
    drop(again);
    // Whoever adopts it reaches the same agent.
    let record = running.record.clone();
    drop(running);
    let mut adopted = bench.adopt(&record).await;
    assert_eq!(next(&mut adopted.events).await, MachineEvent::Running);
    let after = channel(adopted.machine.as_ref()).await;
    says(&after, "four").await;
    drop((after, agent));
    bench.end(adopted).await;
}

#[tokio::test]
async fn a_guest_without_an_agent_is_unreachable() {
    let bench = Bench::fake("");
    let running = bench.launch().await;
    let error = running.machine.agent_channel().await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("vsock port 1021"), "{error}");
    bench.end(running).await;
}
