//! Shows the progress of a long operation on standard error: a bar on a terminal, plain lines elsewhere, nothing when quiet.

use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use innkeeper::progress::{Progress, Unit, Update};

use crate::output::{Format, Output};
use crate::terminal_text;

/// Shows progress. Dropping it takes the bar away.
pub(crate) struct Reporter {
    output: Output,
    shown: Mutex<Shown>,
}

struct Shown {
    step: String,
    bar: Option<ProgressBar>,
    on_terminal: bool,
}

impl Reporter {
    /// Makes one that speaks as `output` says.
    pub(crate) fn new(output: &Output) -> Self {
        let silent = output.quiet || output.is_json();
        Reporter {
            output: *output,
            shown: Mutex::new(Shown {
                step: String::new(),
                bar: None,
                on_terminal: !silent && io::stderr().is_terminal(),
            }),
        }
    }

    /// Makes one that shows nothing.
    pub(crate) fn silent() -> Self {
        Reporter::new(&Output {
            format: Format::Table,
            quiet: true,
            colours: false,
        })
    }

    /// Takes the bar away, so that other words can be written.
    pub(crate) fn finish(&self) {
        let mut shown = self.lock();
        if let Some(bar) = shown.bar.take() {
            bar.finish_and_clear();
        }
        shown.step.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shown> {
        // A panic while drawing must not hide what was being drawn.
        self.shown
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Progress for Reporter {
    fn report(&self, update: Update<'_>) {
        let mut shown = self.lock();
        let is_new = shown.step != update.step;
        if is_new {
            shown.step = update.step.to_owned();
        }
        if !shown.on_terminal {
            if is_new {
                let detail = terminal_text::one_line(update.detail);
                let gap = if detail.is_empty() { "" } else { ": " };
                self.output.note(&format!("{}{gap}{detail}", update.step));
            }
            return;
        }
        let bar = shown.bar.get_or_insert_with(new_bar);
        if is_new {
            bar.reset();
            bar.set_style(style(&update));
            bar.set_prefix(update.step.to_owned());
        }
        match update.total {
            Some(total) => bar.set_length(total),
            None => bar.unset_length(),
        }
        bar.set_position(update.done);
        bar.set_message(terminal_text::one_line(update.detail));
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.finish();
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn style(update: &Update<'_>) -> ProgressStyle {
    // The templates are constants that the test below reads; a wrong one would show a plainer bar, not fail a download.
    ProgressStyle::with_template(template(update))
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .progress_chars("=> ")
}

fn template(update: &Update<'_>) -> &'static str {
    match (update.unit, update.total) {
        (Unit::Bytes, Some(_)) => {
            "{spinner} {prefix} [{bar:28}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {wide_msg}"
        }
        (Unit::Bytes, None) => {
            "{spinner} {prefix} {binary_bytes} {binary_bytes_per_sec} {wide_msg}"
        }
        (Unit::Steps, Some(_)) => "{spinner} {prefix} [{bar:28}] {pos}/{len} {wide_msg}",
        (Unit::Steps, None) => "{spinner} {prefix} {pos} {wide_msg}",
        (Unit::None, _) => "{spinner} {prefix} {elapsed} {wide_msg}",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_progress_takes_any_update() {
        let reporter = Reporter::silent();
        for (total, unit) in [
            (Some(3), Unit::Bytes),
            (None, Unit::Bytes),
            (Some(3), Unit::Steps),
            (None, Unit::Steps),
            (None, Unit::None),
        ] {
            let update = Update {
                step: "downloading",
                detail: "\x1b]0;x\x07",
                done: 7,
                total,
                unit,
            };
            reporter.report(update);
            assert!(ProgressStyle::with_template(template(&update)).is_ok());
        }
        assert_eq!(reporter.lock().step, "downloading");
        reporter.finish();
        assert_eq!(reporter.lock().step, "");
    }
}
