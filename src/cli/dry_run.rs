//! `--dry-run`: whether a command changes anything, or only shows what it would.

use clap::{Args, ValueEnum};

/// `none`, `client`, `server`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum DryRun {
    /// Do it
    #[default]
    None,
    /// Only print what would be sent
    Client,
    /// Let the server check it, without keeping it
    Server,
}

/// The option.
#[derive(Debug, Clone, Default, Args)]
pub struct DryRunArg {
    /// Only show what would be done
    #[arg(long, value_enum, default_value_t = DryRun::None, default_missing_value = "client",
        num_args = 0..=1, require_equals = true, value_name = "HOW")]
    pub dry_run: DryRun,
}

impl DryRunArg {
    /// Whether nothing is sent.
    pub fn client(&self) -> bool {
        self.dry_run == DryRun::Client
    }

    /// What the query says.
    pub fn query(&self) -> Option<String> {
        (self.dry_run == DryRun::Server).then(|| "All".into())
    }

    /// What a message ends with.
    pub fn suffix(&self) -> &'static str {
        match self.dry_run {
            DryRun::None => "",
            DryRun::Client => " (dry run)",
            DryRun::Server => " (server dry run)",
        }
    }
}
