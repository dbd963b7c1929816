//! What is common to verbs that change objects: how the result is told.

use clap::Args;
use serde_json::Value;

use super::{
    dry_run::DryRunArg,
    error::Outcome,
    output::{Format, Printer},
    session::{Session, line},
    target::Found,
};

/// How a change is told.
#[derive(Debug, Clone, Default, Args)]
pub struct ReportArgs {
    /// Print the object instead of what was done: json, yaml, name, jsonpath=TEMPLATE
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
    #[command(flatten)]
    pub dry: DryRunArg,
}

/// Tells of changes, one after the other.
pub struct Reporter<'a> {
    session: &'a Session,
    args: &'a ReportArgs,
    printer: Printer,
}

impl<'a> Reporter<'a> {
    /// A reporter that has told nothing yet.
    pub fn new(session: &'a Session, args: &'a ReportArgs) -> Reporter<'a> {
        Reporter { session, args, printer: Printer::default() }
    }

    /// `pod/web created`, or the object as `-o` wants it.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub async fn tell(&mut self, about: &Found, object: &Value, done: &str) -> Outcome {
        match &self.args.output {
            Some(format) => self.printer.print(format, self.session.kinds().await?, object),
            None => line(format!("{} {done}{}", about.called(), self.args.dry.suffix())),
        }
    }
}

/// How strictly the server reads documents.
#[derive(Debug, Clone, Args)]
pub struct ValidateArg {
    /// What to do about unknown fields: true or strict, warn, false or ignore
    #[arg(long, value_name = "HOW", default_value = "strict", default_missing_value = "strict", num_args = 0..=1,
        require_equals = true, value_parser = validation)]
    pub validate: &'static str,
}

fn validation(text: &str) -> Result<&'static str, String> {
    match text {
        "true" | "strict" => Ok("Strict"),
        "warn" => Ok("Warn"),
        "false" | "ignore" => Ok("Ignore"),
        _ => Err("one of true, strict, warn, false, ignore".into()),
    }
}

impl ValidateArg {
    /// What the query says.
    pub fn query(&self) -> Option<String> {
        Some(self.validate.to_owned())
    }
}
