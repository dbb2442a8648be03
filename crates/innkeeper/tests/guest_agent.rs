//! The guest channel, the relay and the copies against the real agent program, run on this computer over a socket.
//!
//! The agent is started with `--connect`, in which mode it refuses what changes a system. Each test has its own agent
//! and directory; both are gone when it ends.
#![cfg(target_os = "linux")]

use innkeeper::guest::message::{
    CopyInRequest, CopyOutRequest, ErrorKind, ExecRequest, ExitStatus, ShutdownKind, Terminal,
};
use innkeeper::guest::{
    ChannelOptions, CopyProgress, ExecPosition, GuestChannel, GuestError, relay,
};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

const LIMIT: Duration = Duration::from_secs(20);

/// Builds the agent once; it belongs to another package, so cargo does not name its path to this test.
fn agent_program() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            // A test run by another user has no cargo, but the static agent.
            let file = format!("agent-linux-{}", std::env::consts::ARCH);
            if let Some(agent) = std::env::var_os("INNKEEPER_LIBEXEC")
                .map(|directory| PathBuf::from(directory).join(file))
                .filter(|agent| agent.is_file())
            {
                return agent;
            }
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let built = Command::new(cargo)
                .args([
                    "build",
                    "--quiet",
                    "-p",
                    "innkeeper-agent",
                    "--bin",
                    "inn-agent",
                ])
                .status()
                .expect("cargo runs");
            assert!(built.success(), "the agent must build");
            let test = std::env::current_exe().expect("the test has a path");
            test.parent()
                .and_then(|deps| deps.parent())
                .expect("a target directory")
                .join("inn-agent")
        })
        .clone()
}

struct Agent {
    process: Child,
    listener: UnixListener,
    directory: tempfile::TempDir,
}

impl Agent {
    async fn start() -> (Agent, GuestChannel) {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("agent");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let process = Command::new(agent_program())
            .arg("--connect")
            .arg(format!("unix:{}", socket.display()))
            .spawn()
            .expect("the agent starts");
        let agent = Agent {
            process,
            listener,
            directory,
        };
        let channel = agent.accept().await;
        (agent, channel)
    }

    async fn accept(&self) -> GuestChannel {
        let (stream, _) = tokio::time::timeout(LIMIT, self.listener.accept())
            .await
            .expect("in time")
            .expect("accepted");
        let channel = GuestChannel::start(stream, ChannelOptions::default());
        channel.ready(LIMIT).await.expect("a handshake");
        channel
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn command(argv: &[&str]) -> ExecRequest {
    ExecRequest {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecRequest::default()
    }
}

async fn output(channel: &GuestChannel, request: ExecRequest) -> (String, String, ExitStatus) {
    let mut session = channel.exec(request).await.expect("started");
    session.stdin.shutdown().await.expect("end of input");
    let (mut out, mut err) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (session.stdout, session.stderr);
    let read = async {
        tokio::try_join!(
            stdout.read_to_string(&mut out),
            stderr.read_to_string(&mut err)
        )
        .expect("output");
    };
    tokio::time::timeout(LIMIT, read).await.expect("in time");
    let status = tokio::time::timeout(LIMIT, session.control.wait())
        .await
        .expect("in time")
        .expect("a status");
    (out, err, status)
}

#[tokio::test]
async fn a_command_gives_its_output_its_errors_and_its_code() {
    let (_agent, channel) = Agent::start().await;
    let mut request = command(&["sh", "-c", "echo $GREETING; pwd; echo bad >&2; exit 7"]);
    request
        .env
        .insert("GREETING".to_owned(), "hello".to_owned());
    request.cwd = Some("/usr".to_owned());
    let (out, err, status) = output(&channel, request).await;
    assert_eq!(
        (out.as_str(), err.as_str(), status),
        ("hello\n/usr\n", "bad\n", ExitStatus::Code(7))
    );
    let deadline = Instant::now() + LIMIT;
    while !channel.exec_sessions().await.expect("a list").is_empty() {
        assert!(
            Instant::now() < deadline,
            "a collected session must be forgotten"
        );
    }
    assert!(channel.metrics().await.expect("metrics").memory_total > 0);
    channel.ping(LIMIT).await.expect("a pong");
}

#[tokio::test]
async fn what_cannot_run_is_told_apart() {
    let (agent, channel) = Agent::start().await;
    let missing = channel.exec(command(&["no-such-command-here"])).await;
    assert!(matches!(missing, Err(GuestError::CommandNotFound(_))));
    std::fs::write(agent.path("plain"), "text").expect("a file");
    let plain = channel
        .exec(command(&[agent.path("plain").to_str().expect("text")]))
        .await;
    assert!(matches!(plain, Err(GuestError::CannotExecute(_))));
    let mut elsewhere = command(&["true"]);
    elsewhere.cwd = Some("/no/such/directory".to_owned());
    assert!(
        matches!(channel.exec(elsewhere).await, Err(GuestError::Agent(failure)) if failure.kind == ErrorKind::NotFound)
    );
    let refused = channel.shutdown(ShutdownKind::Poweroff).await;
    assert!(
        matches!(refused, Err(GuestError::Agent(failure)) if failure.kind == ErrorKind::NotPermitted)
    );
}

#[tokio::test]
async fn input_of_many_windows_comes_back_whole() {
    let (_agent, channel) = Agent::start().await;
    let mut session = channel.exec(command(&["cat"])).await.expect("started");
    let sent: Vec<u8> = (0..3_000_000u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let expected = sent.clone();
    let mut stdin = session.stdin;
    let write = async move {
        stdin.write_all(&sent).await.expect("written");
        stdin.shutdown().await.expect("ended");
    };
    let mut received = Vec::new();
    let read = session.stdout.read_to_end(&mut received);
    let (_, read) = tokio::time::timeout(LIMIT, async { tokio::join!(write, read) })
        .await
        .expect("in time");
    read.expect("read");
    assert!(received == expected);
    assert_eq!(
        session.control.wait().await.expect("a status"),
        ExitStatus::Code(0)
    );
}

#[tokio::test]
async fn a_terminal_has_its_size_changes_it_and_takes_signals() {
    let (_agent, channel) = Agent::start().await;
    let mut request = command(&[
        "sh",
        "-c",
        "trap 'stty size; exit 3' WINCH; stty size; read line; while :; do read x; done",
    ]);
    request.tty = Some(Terminal {
        rows: 30,
        columns: 100,
        term: "vt100".to_owned(),
    });
    let mut session = channel.exec(request).await.expect("started");
    let mut seen = String::new();
    read_until(&mut session.stdout, &mut seen, "30 100").await;
    session.resize(40, 120).expect("resized");
    session.stdin.write_all(b"go\n").await.expect("written");
    read_until(&mut session.stdout, &mut seen, "40 120").await;
    assert_eq!(session.wait().await.expect("a status"), ExitStatus::Code(3));

    let mut session = channel
        .exec(command(&["sleep", "1000"]))
        .await
        .expect("started");
    session.signal(15).expect("sent");
    assert_eq!(
        session.wait().await.expect("a status"),
        ExitStatus::Signal(15)
    );
}

async fn read_until(output: &mut (impl AsyncReadExt + Unpin), seen: &mut String, wanted: &str) {
    let read = async {
        let mut buffer = [0; 1024];
        while !seen.contains(wanted) {
            let count = output.read(&mut buffer).await.expect("output");
            assert!(count > 0, "it ended without {wanted:?}: {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    tokio::time::timeout(LIMIT, read).await.expect("in time");
}

#[tokio::test]
async fn a_session_survives_its_host_and_goes_on_from_the_offset() {
    let (agent, channel) = Agent::start().await;
    let request = command(&[
        "sh",
        "-c",
        "echo one; read x; echo two; echo err >&2; exit 5",
    ]);
    let mut session = channel.exec(request).await.expect("started");
    let mut seen = String::new();
    read_until(&mut session.stdout, &mut seen, "one\n").await;
    let position = session.control.position();
    // The host dies: everything it had is gone.
    drop(session);
    drop(channel);
    let channel = agent.accept().await;
    let listed = channel.exec_sessions().await.expect("a list");
    assert_eq!(listed.len(), 1);
    assert!(!listed[0].attached && listed[0].exited.is_none());
    let mut session = channel.attach(position).await.expect("attached");
    session.stdin.write_all(b"go\n").await.expect("written");
    let (mut out, mut err) = (String::new(), String::new());
    session
        .stdout
        .read_to_string(&mut out)
        .await
        .expect("output");
    session
        .stderr
        .read_to_string(&mut err)
        .await
        .expect("errors");
    assert_eq!((out.as_str(), err.as_str()), ("two\n", "err\n"));
    assert_eq!(session.wait().await.expect("a status"), ExitStatus::Code(5));

    // And from the beginning, for somebody who has seen nothing of a session that ended meanwhile.
    let session = channel
        .exec(command(&["sh", "-c", "echo alone"]))
        .await
        .expect("started");
    let id = session.control.session();
    session.control.detach();
    drop(session);
    let mut session = channel
        .attach(ExecPosition::unknown(id))
        .await
        .expect("attached");
    out.clear();
    session
        .stdout
        .read_to_string(&mut out)
        .await
        .expect("output");
    assert_eq!(out, "alone\n");
    assert_eq!(session.wait().await.expect("a status"), ExitStatus::Code(0));
}

#[tokio::test]
async fn a_client_that_dies_hangs_its_command_up_after_the_grace() {
    let (agent, channel) = Agent::start().await;
    let mark = agent.path("hung-up");
    let script = format!(
        "trap 'echo hup > {}; exit' HUP; echo up; while :; do sleep 0.05; done",
        mark.display()
    );
    let mut request = command(&["sh", "-c", &script]);
    request.orphan_grace_seconds = Some(0);
    let mut session = channel.exec(request).await.expect("started");
    read_until(&mut session.stdout, &mut String::new(), "up").await;
    drop(session);
    let deadline = Instant::now() + LIMIT;
    // poll: the command has made its mark
    while !mark.exists() {
        assert!(Instant::now() < deadline, "the command got no SIGHUP");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_client_behind_the_relay_works_and_its_copy_does_not_starve_a_command() {
    let (agent, channel) = Agent::start().await;
    let (near, far) = UnixStream::pair().expect("a pair");
    let relayed = channel.clone();
    let keeper = tokio::spawn(async move { relay(&relayed, far).await });
    let client = GuestChannel::start(near, ChannelOptions::default());
    client.ready(LIMIT).await.expect("a handshake");
    let (out, _, status) = output(&client, command(&["echo", "through"])).await;
    assert_eq!((out.as_str(), status), ("through\n", ExitStatus::Code(0)));

    let source = agent.path("big");
    std::fs::write(&source, vec![7u8; 64 << 20]).expect("a file");
    let progress = CopyProgress::default();
    let request = CopyInRequest {
        path: agent.path("copied").display().to_string(),
        ..CopyInRequest::default()
    };
    let copy = client.copy_in(&source, request, &progress);
    let beside = async {
        while progress.bytes() == 0 {
            tokio::task::yield_now().await;
        }
        output(&channel, command(&["true"])).await;
        progress.bytes()
    };
    let (summary, _) = tokio::join!(copy, beside);
    assert_eq!(summary.expect("copied").bytes, 64 << 20);
    assert_eq!(
        std::fs::metadata(agent.path("copied"))
            .expect("there")
            .len(),
        64 << 20
    );

    // The client vanishes: the relay ends, and the command is left to its grace, attachable by the keeper.
    let mut session = client.exec(command(&["cat"])).await.expect("started");
    session.stdin.write_all(b"kept").await.expect("written");
    let mut four = [0; 4];
    session.stdout.read_exact(&mut four).await.expect("echo");
    let id = session.control.session();
    drop(session.stdin);
    drop((session.stdout, session.stderr, session.control, client));
    tokio::time::timeout(LIMIT, keeper)
        .await
        .expect("in time")
        .expect("the relay ends");
    let mut again = channel
        .attach(ExecPosition::unknown(id))
        .await
        .expect("attached");
    again.stdin.write_all(b"more").await.expect("written");
    again.stdin.shutdown().await.expect("ended");
    let mut rest = String::new();
    again
        .stdout
        .read_to_string(&mut rest)
        .await
        .expect("output");
    assert!(rest.ends_with("more"), "{rest:?}");
}

#[tokio::test]
async fn trees_are_copied_both_ways_with_modes_times_and_links() {
    let (agent, channel) = Agent::start().await;
    let source = agent.path("tree");
    std::fs::create_dir_all(source.join("inner/empty")).expect("made");
    std::fs::write(source.join("inner/script"), "#!/bin/sh\n").expect("made");
    std::fs::set_permissions(
        source.join("inner/script"),
        PermissionsExt::from_mode(0o750),
    )
    .expect("mode");
    symlink("../nowhere", source.join("link")).expect("link");
    let time = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 5_000_000);
    std::fs::File::options()
        .write(true)
        .open(source.join("inner/script"))
        .and_then(|file| file.set_modified(time))
        .expect("time");
    let progress = CopyProgress::default();
    std::fs::create_dir(agent.path("in")).expect("made");
    let request = CopyInRequest {
        path: agent.path("in").display().to_string(),
        ..CopyInRequest::default()
    };
    let summary = channel
        .copy_in(&source, request, &progress)
        .await
        .expect("copied");
    assert_eq!(summary.entries, 5);
    let request = CopyOutRequest {
        path: agent.path("in/tree").display().to_string(),
    };
    channel
        .copy_out(request, &agent.path("out"), &progress)
        .await
        .expect("copied");
    let script = agent.path("out/inner/script");
    let metadata = std::fs::metadata(&script).expect("there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o750);
    assert_eq!(metadata.modified().expect("a time"), time);
    assert_eq!(
        std::fs::read_link(agent.path("out/link")).expect("a link"),
        PathBuf::from("../nowhere")
    );
    assert!(agent.path("out/inner/empty").is_dir());
    let missing = CopyOutRequest {
        path: "/no/such/file".to_owned(),
    };
    let failed = channel
        .copy_out(missing, &agent.path("none"), &progress)
        .await;
    assert!(
        matches!(failed, Err(GuestError::Agent(failure)) if failure.kind == ErrorKind::NotFound)
    );
}
