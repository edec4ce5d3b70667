//! What the user sees while a job runs: bars on a terminal, plain lines elsewhere, and the same lines in the run's log.
//!
//! Everything goes to stderr; stdout carries results only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Where there is no bar, a long part says so often how far it is.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// Warnings only.
    Quiet,
    /// Lines, and bars on a terminal.
    Normal,
    /// Also versions, hashes and how long each part took.
    Verbose,
}

/// The way to the user.
#[derive(Debug)]
pub struct Progress {
    voice: Voice,
    log: Mutex<Option<File>>,
    bar: Mutex<Option<ProgressBar>>,
    part: Mutex<Option<Part>>,
}

/// The part of a job that runs.
#[derive(Debug)]
struct Part {
    label: String,
    total: usize,
    since: Instant,
    /// When a line was last said where there is no bar.
    said: Instant,
}

impl Progress {
    /// Speaks in this voice.
    pub fn new(voice: Voice) -> Progress {
        Progress { voice, log: Mutex::new(None), bar: Mutex::new(None), part: Mutex::new(None) }
    }

    /// Also writes lines to a file from now on. A log that cannot be opened is left out: it is not the job.
    pub fn log_to(&self, path: &Path) {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path).ok();
        if let Ok(mut log) = self.log.lock() {
            *log = file;
        }
    }

    /// Writes to no file any more.
    pub fn end_log(&self) {
        if let Ok(mut log) = self.log.lock() {
            *log = None;
        }
    }

    /// Says a line.
    pub fn line(&self, text: impl AsRef<str>) {
        self.write(text.as_ref(), self.voice != Voice::Quiet);
    }

    /// Says what only `--verbose` asks for.
    pub fn detail(&self, text: impl AsRef<str>) {
        if self.voice == Voice::Verbose {
            self.write(text.as_ref(), true);
        }
    }

    /// Says a warning, also when quiet.
    pub fn warn(&self, text: impl AsRef<str>) {
        self.write(&format!("warning: {}", text.as_ref()), true);
    }

    /// Starts a bar of `total` steps, or of nobody knows how many with 0; nothing is drawn when quiet. Not on a terminal, a line is said now and then.
    pub fn start(&self, label: &str, total: usize) {
        if let Ok(mut part) = self.part.lock() {
            let now = Instant::now();
            *part = Some(Part { label: label.to_string(), total, since: now, said: now });
        }
        if self.voice != Voice::Quiet && std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
            let style = match total {
                0 => ProgressStyle::with_template("{prefix:10} {pos} {msg} {elapsed}"),
                _ => ProgressStyle::with_template("{prefix:10} {wide_bar:.cyan} {pos}/{len} {msg} {eta}"),
            };
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(label.to_string());
            if let Ok(mut slot) = self.bar.lock() {
                *slot = Some(bar);
            }
        }
    }

    /// Moves the bar.
    pub fn at(&self, position: usize, message: impl AsRef<str>) {
        let message = message.as_ref();
        if let Ok(slot) = self.bar.lock()
            && let Some(bar) = slot.as_ref()
        {
            bar.set_message(message.to_string());
            bar.set_position(position as u64);
            return;
        }
        self.now_and_then(|total| counted(position, total, message));
    }

    /// Says how far one step of the bar is that takes long itself.
    pub fn within(&self, message: &str) {
        if let Ok(slot) = self.bar.lock()
            && let Some(bar) = slot.as_ref()
        {
            bar.set_message(message.to_string());
            return;
        }
        self.now_and_then(|_| message.to_string());
    }

    /// Says a line without a bar, once in [`LINE_EVERY`].
    fn now_and_then(&self, text: impl FnOnce(usize) -> String) {
        if let Some(line) = self.due(text) {
            self.line(line);
        }
    }

    fn due(&self, text: impl FnOnce(usize) -> String) -> Option<String> {
        let mut part = self.part.lock().ok()?;
        let Part { label, total, said, .. } = part.as_mut().filter(|part| part.said.elapsed() >= LINE_EVERY)?;
        *said = Instant::now();
        Some(format!("{label:12} {}", text(*total)).trim_end().to_string())
    }

    /// Moves a bar whose end was not known when it started.
    pub fn of(&self, position: usize, total: usize) {
        if let Ok(slot) = self.bar.lock()
            && let Some(bar) = slot.as_ref()
        {
            bar.set_length(total as u64);
            bar.set_position(position as u64);
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Ok(mut slot) = self.bar.lock()
            && let Some(bar) = slot.take()
        {
            bar.finish_and_clear();
        }
        let ended = self.part.lock().ok().and_then(|mut part| part.take());
        if let Some(Part { label, since, .. }) = ended {
            self.detail(format!("{label:12} took {:.2} s", since.elapsed().as_secs_f64()));
        }
    }

    fn write(&self, text: &str, shown: bool) {
        if shown {
            let bar = self.bar.lock().ok();
            match bar.as_ref().and_then(|b| b.as_ref()) {
                Some(bar) => bar.suspend(|| tell(text)),
                None => tell(text),
            }
        }
        if let Ok(mut log) = self.log.lock()
            && let Some(file) = log.as_mut()
        {
            let _ = writeln!(file, "{text}");
        }
    }
}

/// How far a part is.
fn counted(position: usize, total: usize, message: &str) -> String {
    match total {
        0 => format!("{position} {message}"),
        _ => format!("{position} of {total} {message}"),
    }
}

/// A line on stderr; where nobody listens (`2>&1 | head`), the job goes on without.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_bar_a_long_part_says_how_far_it_is() {
        let progress = Progress::new(Voice::Quiet);
        let due = |done: usize| progress.due(|total| counted(done, total, ""));
        assert_eq!(due(3), None, "no part runs");
        progress.start("testing", 34);
        assert_eq!(due(3), None, "not so soon");
        let longer_ago = Instant::now().checked_sub(LINE_EVERY);
        // A machine that was just started has no time before.
        let (Some(longer_ago), Ok(mut part)) = (longer_ago, progress.part.lock()) else { return };
        part.as_mut().into_iter().for_each(|part| part.said = longer_ago);
        drop(part);
        assert_eq!(due(17).as_deref(), Some("testing      17 of 34"));
        assert_eq!(due(18), None, "said just now");
        assert_eq!(counted(37, 0, "loss 0.5"), "37 loss 0.5", "of nobody knows how many");
    }
}
