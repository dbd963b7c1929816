//! `api-resources` and `api-versions`: what the cluster can keep.

use clap::{Args, ValueEnum};

use super::{
    discovery::Resource,
    error::Outcome,
    output::tabs::Tabs,
    session::{Session, line, raw},
};

/// Options of `api-resources`.
#[derive(Debug, Clone, Args)]
pub struct ApiResourcesArgs {
    /// Only those that live in namespaces; =false: only the others
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    namespaced: Option<bool>,
    /// Only of this group; empty for the core's
    #[arg(long, value_name = "GROUP")]
    api_group: Option<String>,
    /// Only those with all these verbs
    #[arg(long, value_delimiter = ',', value_name = "VERB")]
    verbs: Vec<String>,
    /// Only those of all these categories
    #[arg(long, value_delimiter = ',', value_name = "CATEGORY")]
    categories: Vec<String>,
    /// Without the line of headers
    #[arg(long)]
    no_headers: bool,
    /// wide or name
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Wide,
    Name,
}

/// Runs `api-resources`.
///
/// # Errors
/// As every verb.
pub async fn run(session: &Session, args: &ApiResourcesArgs) -> Outcome {
    let kinds = session.kinds().await?;
    let mut shown: Vec<&Resource> = kinds.resources.iter().filter(|r| fits(args, r)).collect();
    shown.sort_by_key(|r| (&r.group, &r.plural));
    if args.output == Some(Output::Name) {
        return shown.iter().try_for_each(|r| line(r.full_plural()));
    }
    let wide = args.output == Some(Output::Wide);
    let mut text = String::new();
    if !args.no_headers {
        text.push_str("NAME\tSHORTNAMES\tAPIVERSION\tNAMESPACED\tKIND");
        text.push_str(if wide { "\tVERBS\tCATEGORIES\n" } else { "\n" });
    }
    for r in shown {
        let shorts = r.short_names.join(",");
        text.push_str(&format!("{}\t{shorts}\t{}\t{}\t{}", r.plural, r.api_version(), r.namespaced, r.kind));
        if wide {
            text.push_str(&format!("\t{}\t{}", r.verbs.join(","), r.categories.join(",")));
        }
        text.push('\n');
    }
    raw(Tabs::table().align(&text))
}

fn fits(args: &ApiResourcesArgs, r: &Resource) -> bool {
    args.namespaced.is_none_or(|n| n == r.namespaced)
        && args.api_group.as_ref().is_none_or(|g| *g == r.group)
        && args.verbs.iter().all(|v| r.can(v))
        && args.categories.iter().all(|c| r.categories.contains(c))
}

/// Runs `api-versions`.
///
/// # Errors
/// As every verb.
pub async fn versions(session: &Session) -> Outcome {
    let mut versions: Vec<String> =
        session.kinds().await?.resources.iter().map(Resource::api_version).collect();
    versions.sort();
    versions.dedup();
    versions.iter().try_for_each(line)
}
