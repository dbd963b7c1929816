//! `describe`.
use super::{error::Outcome, session::Session};
use clap::Args;
/// x
#[derive(Debug, Clone, Args)]
pub struct DescribeArgs {}
/// x
/// # Errors
/// x
pub async fn run(_: &Session, _: &DescribeArgs) -> Outcome {
    Ok(())
}
