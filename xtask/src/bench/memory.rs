//! What a keeper holds for itself: its private memory with a ready guest, and after a big copy went through it.
//!
//! Linux only, since it reads `/proc/PID/smaps_rollup`. Pages that another process has too don't count; the program's
//! text counts in part here, since one keeper runs beside nothing else of its kind, so this is the dearest case.

use anyhow::{Context, Result};

use super::copy::write_noise;
use super::installation::Installation;
use super::report::{Goal, Row, Unit};

const NAME: &str = "memory";
const COPIED: u64 = 256 << 20;

/// Measures both.
pub(super) fn run(installation: &mut Installation, count: usize) -> Result<Vec<Row>> {
    installation.add("run", NAME, &[])?;
    let idle = sample(installation, count)?;
    let file = installation.root().join("copied");
    write_noise(&file, COPIED)?;
    let mut copy = installation.command(&["cp", "-q"]);
    copy.arg(&file).arg(format!("{NAME}:/tmp/copied"));
    super::installation::finish_within(copy, installation.limit() * 10)?;
    let copied = sample(installation, count)?;
    std::fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    installation.remove(NAME)?;
    let row = |name, values| Row::alone(name, Unit::Mebibytes, values, Goal::Ours(12.0));
    Ok(vec![
        row("keeper, private", idle)?,
        row("keeper, private, after cp", copied)?,
    ])
}

/// Looks at a keeper in use: after each of so many commands.
fn sample(installation: &Installation, count: usize) -> Result<Vec<f64>> {
    let keeper = installation
        .info(NAME)?
        .keeper_pid
        .context("inn info names no keeper")?;
    (0..count)
        .map(|_| {
            installation.run(&["exec", NAME, "true"])?;
            private(keeper)
        })
        .collect()
}

/// The private memory of a process in MiB. Source: Linux, Documentation/filesystems/proc.rst, `smaps_rollup`.
fn private(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let kibibytes = sum(&text, &["Private_Clean:", "Private_Dirty:"])
        .with_context(|| format!("{path} has no private memory"))?;
    Ok(kibibytes / 1024.0)
}

/// Adds up the fields of lines `NAME: 12 kB`; none if one is missing.
fn sum(text: &str, names: &[&str]) -> Option<f64> {
    names
        .iter()
        .map(|name| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_suffix("kB"))
                .and_then(|value| value.trim().parse::<f64>().ok())
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_private_pages_count() {
        let text = "5590-7ffd ---p 0 00:00 0  [rollup]\nRss:  884 kB\nPrivate_Clean:  88 kB\n\
                    Private_Dirty:       92 kB\nPrivate_Hugetlb: 0 kB\n";
        let names = ["Private_Clean:", "Private_Dirty:"];
        assert_eq!(sum(text, &names), Some(180.0));
        assert_eq!(sum("Private_Clean: 88 kB\n", &names), None);
    }
}
