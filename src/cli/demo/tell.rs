//! How the story looks: commands as they would be typed, their output, and what was seen.

use std::{
    io::{IsTerminal as _, Write as _},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use super::{Act, stage::Stage};

/// Time to read, on a terminal.
const PAUSE: Duration = Duration::from_millis(1500);

const BOLD: &str = "\x1b[1m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Prints; with colour and pauses on a terminal only.
pub struct Teller {
    colour: bool,
    pause: bool,
}

impl Teller {
    pub fn new(fast: bool) -> Teller {
        let terminal = std::io::stdout().is_terminal();
        Teller { colour: terminal && std::env::var_os("NO_COLOR").is_none(), pause: terminal && !fast }
    }

    pub fn act(&self, title: &str, what: &str) {
        if self.pause {
            thread::sleep(PAUSE);
        }
        self.line(&format!("\n{}\n{what}", self.paint(BOLD, &format!("── {title}"))));
    }

    pub fn note(&self, text: &str) {
        self.line(&self.paint(DIM, text));
    }

    pub fn command(&self, text: &str) {
        self.line(&format!("{} {}", self.paint(DIM, "$"), self.paint(BOLD, text)));
    }

    pub fn text(&self, text: &str) {
        for line in text.lines() {
            self.line(&format!("  {line}"));
        }
    }

    pub fn seen(&self, what: &str) {
        self.line(&format!("{} {what}", self.paint(GREEN, "✓")));
    }

    /// Runs a command of this program on the stage's cluster and shows what it prints.
    pub fn run(&self, stage: &Stage, args: &[&str]) -> Act {
        self.run_with(stage, args, "")
    }

    /// As [`Teller::run`], with a text on standard input.
    pub fn run_with(&self, stage: &Stage, args: &[&str], input: &str) -> Act {
        self.command(&format!("troupe {}", args.join(" ")));
        let failed = |error: std::io::Error| format!("troupe {}: {error}", args.join(" "));
        let mut child = Command::new(stage.program())
            .args(args)
            .env("KUBECONFIG", stage.kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).map_err(failed)?;
        }
        let output = child.wait_with_output().map_err(failed)?;
        self.text(&String::from_utf8_lossy(&output.stdout));
        let complaint = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("troupe {} failed: {}", args.join(" "), complaint.trim()));
        }
        self.text(&complaint);
        Ok(())
    }

    pub fn end(&self, time: Duration) {
        self.line(&format!(
            "\n{} in {:.1} s. All of it happened as shown. Next: troupe up, then kubectl (or troupe) get pods.",
            self.paint(GREEN, "The end"),
            time.as_secs_f64()
        ));
    }

    pub fn broken(&self, why: &str) {
        eprintln!("\n{} {why}", self.paint(RED, "the demo failed:"));
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("{colour}{text}{PLAIN}") } else { text.to_owned() }
    }

    fn line(&self, text: &str) {
        // Whoever stopped reading has seen enough; the exit code still tells.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}
