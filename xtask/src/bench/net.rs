//! Frames through one hop: our switch against a socket pair, a relay that looks at nothing, vde_switch and the Linux bridge.
//!
//! ```text
//!  xtask ──starts──► target/release/examples/hop HOP flow|turn …     one process a measurement, a line of JSON each
//! ```
//! Streams lose nothing, so their time is that of all frames. vde_switch and the bridge drop what does not fit; theirs is the time for each
//! frame that came, times the frames of the measurement, which favours them. What is not there (vde_switch, root for a bridge) is told and left out.

use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::process::{Pid, Signal};
use serde::Deserialize;

use super::report::{Goal, Row, Unit};
use super::{LEAST_PAIRS, publish};
use crate::process::{cargo, find_program, is_root, run, say, stdout};
use crate::workspace;

/// How often.
#[derive(Args)]
pub(crate) struct NetArguments {
    /// How many pairs, at least 15.
    #[arg(long, default_value_t = 21)]
    pairs: usize,
}

/// Frames of a measurement; a sender that batches gets more.
const FRAMES: u32 = 300_000;
const BATCHED: u32 = 1_000_000;
const ROUNDS: u32 = 20_000;

/// What the program says of a flow.
#[derive(Deserialize)]
struct Flow {
    frames: u64,
    sent: u64,
    nanos: u64,
    hop_cpu_nanos: Option<u64>,
}

/// What it says of turns.
#[derive(Deserialize)]
struct Turns {
    p50_nanos: u64,
    p99_nanos: u64,
}

/// What of a run is compared.
#[derive(Clone, Copy)]
enum Measure {
    /// Time for all frames.
    Flow {
        size: u32,
        frames: u32,
        pace: &'static str,
    },
    /// CPU time of the hop's thread for all frames.
    Cpu { size: u32 },
    /// Round trips at this quantile.
    Turn { high: bool },
}

/// One row: the switch against a peer.
struct Compared {
    name: String,
    ours: &'static str,
    theirs: String,
    measure: Measure,
    goal: f64,
}

/// Runs all of it.
pub(super) fn net(arguments: &NetArguments) -> Result<()> {
    let pairs = arguments.pairs;
    ensure!(
        pairs >= LEAST_PAIRS,
        "{pairs} pairs are too few: at least {LEAST_PAIRS}"
    );
    run(&mut cargo([
        "build",
        "--release",
        "--locked",
        "-p",
        "innkeeper-net",
        "--example",
        "hop",
    ]))?;
    let hop = Hop {
        program: workspace::target_directory()?.join("release/examples/hop"),
    };
    let vde = Vde::start()?;
    let mut rows = rows();
    match &vde {
        Some(vde) => rows.extend(against("vde_switch", &vde.hop(), 2.2)),
        None => say("vde_switch is not installed (Debian: vde2), so it is not compared"),
    }
    if is_root() && find_program("unshare").is_some() && find_program("ip").is_some() {
        rows.extend(against("Linux bridge with TAPs", "bridge", 1.2));
    } else {
        say("a bridge needs root, unshare and ip, so it is not compared");
    }
    let mut values = vec![Vec::with_capacity(pairs); rows.len()];
    for round in 0..=pairs {
        for (row, values) in rows.iter().zip(&mut values) {
            let ours = || hop.measure(row.ours, row.measure);
            let theirs = || hop.measure(&row.theirs, row.measure);
            // Who goes first changes each round.
            let pair = if round.is_multiple_of(2) {
                let ours = ours()?;
                (ours, theirs()?)
            } else {
                let theirs = theirs()?;
                (ours()?, theirs)
            };
            // The first round warms up.
            if round > 0 {
                values.push(pair);
            }
        }
    }
    let rows = rows.into_iter().zip(values).map(|(row, values)| {
        let unit = match row.measure {
            Measure::Turn { .. } => Unit::Microseconds,
            Measure::Flow { .. } | Measure::Cpu { .. } => Unit::Milliseconds,
        };
        Row::of_pairs_in(row.name, unit, &values, Some(Goal::Ratio(row.goal)))
    });
    publish("net", rows.collect::<Result<_>>()?)
}

fn each(size: u32) -> Measure {
    Measure::Flow {
        size,
        frames: FRAMES,
        pace: "each",
    }
}

/// What can be compared everywhere. A goal for throughput of at least x is one for time of at most 1/x.
fn rows() -> Vec<Compared> {
    let row = |name: &str, ours, theirs: &str, measure, goal| Compared {
        name: name.to_owned(),
        ours,
        theirs: theirs.to_owned(),
        measure,
        goal,
    };
    let batched = Measure::Flow {
        size: 1500,
        frames: BATCHED,
        pace: "batch",
    };
    vec![
        row(
            "1500 B against socket pair",
            "switch",
            "pair",
            each(1500),
            1.0 / 0.85,
        ),
        row(
            "64 B against socket pair",
            "switch",
            "pair",
            each(64),
            1.0 / 0.85,
        ),
        row(
            "1500 B in batches against relay",
            "switch",
            "relay",
            batched,
            2.0,
        ),
        row(
            "round trip p50 against relay",
            "switch",
            "relay",
            Measure::Turn { high: false },
            1.1,
        ),
        row(
            "round trip p99 against relay",
            "switch",
            "relay",
            Measure::Turn { high: true },
            1.3,
        ),
        row(
            "1500 B, 100 idle ports against none",
            "switch-idle",
            "switch",
            each(1500),
            1.1,
        ),
        row(
            "CPU for 1500 B against relay",
            "switch",
            "relay",
            Measure::Cpu { size: 1500 },
            1.2,
        ),
        row(
            "CPU for 64 B against relay",
            "switch",
            "relay",
            Measure::Cpu { size: 64 },
            1.2,
        ),
    ]
}

/// Both sizes against a peer that is to be passed by a factor.
fn against(name: &str, theirs: &str, factor: f64) -> [Compared; 2] {
    [1500, 64].map(|size| Compared {
        name: format!("{size} B against {name}"),
        ours: "switch",
        theirs: theirs.to_owned(),
        measure: each(size),
        goal: 1.0 / factor,
    })
}

/// The program that measures once.
struct Hop {
    program: PathBuf,
}

impl Hop {
    /// Measures once; milliseconds of flows, microseconds of turns.
    fn measure(&self, hop: &str, measure: Measure) -> Result<f64> {
        match measure {
            Measure::Flow { size, frames, pace } => {
                let flow = self.flow(hop, size, frames, pace)?;
                Ok(flow.nanos as f64 / 1e6 * flow.sent as f64 / flow.frames as f64)
            }
            Measure::Cpu { size } => {
                let flow = self.flow(hop, size, FRAMES, "each")?;
                let cpu = flow.hop_cpu_nanos.context("the hop told no CPU time")?;
                Ok(cpu as f64 / 1e6)
            }
            Measure::Turn { high } => {
                let json = self.run(
                    hop,
                    &["turn".to_owned(), "64".to_owned(), ROUNDS.to_string()],
                )?;
                let turns: Turns =
                    serde_json::from_slice(&json).context("reading what hop said")?;
                let nanos = if high {
                    turns.p99_nanos
                } else {
                    turns.p50_nanos
                };
                Ok(nanos as f64 / 1e3)
            }
        }
    }

    fn flow(&self, hop: &str, size: u32, frames: u32, pace: &str) -> Result<Flow> {
        let arguments = [
            "flow".to_owned(),
            size.to_string(),
            frames.to_string(),
            pace.to_owned(),
        ];
        let json = self.run(hop, &arguments)?;
        let flow: Flow = serde_json::from_slice(&json).context("reading what hop said")?;
        ensure!(flow.frames > 0, "no frame came through {hop}");
        Ok(flow)
    }

    fn run(&self, hop: &str, arguments: &[String]) -> Result<Vec<u8>> {
        let mut command = if hop == "bridge" {
            // The bridge is gone with the namespace.
            let mut command = Command::new("unshare");
            command.arg("--net").arg("--").arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        stdout(command.arg(hop).args(arguments))
    }
}

/// A vde_switch in a directory of its own.
struct Vde {
    child: Child,
    /// It ends when its standard input does.
    _input: Option<ChildStdin>,
    directory: PathBuf,
}

impl Vde {
    /// Starts it; none where it is not installed.
    fn start() -> Result<Option<Self>> {
        let Some(program) = find_program("vde_switch") else {
            return Ok(None);
        };
        let directory = std::env::temp_dir().join(format!("innkeeper-vde-{}", std::process::id()));
        let mut child = Command::new(program)
            .arg("-sock")
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("starting vde_switch")?;
        let input = child.stdin.take();
        let vde = Vde {
            child,
            _input: input,
            directory,
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !vde.directory.join("ctl").exists() {
            ensure!(Instant::now() < deadline, "vde_switch makes no socket");
            // poll: its control socket is there
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Some(vde))
    }

    fn hop(&self) -> String {
        format!("vde:{}", self.directory.display())
    }
}

impl Drop for Vde {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // Asked to end it removes its sockets.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
