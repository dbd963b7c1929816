//! What a URL's query asks for.
//!
//! Owns: [`Query`], the options of every verb, parsed once. Unknown options are ignored, as Kubernetes does; known
//! ones with values that cannot be are a 400 that names the option.

use actix_web::web;

use super::error::ApiError;
use crate::model::{Kind, Object, admit::FieldValidation, selector};

/// Every option of every verb.
#[derive(Debug, Default)]
pub struct Query {
    /// `watch=true`.
    pub watch: bool,
    /// `allowWatchBookmarks=true`.
    pub bookmarks: bool,
    /// `sendInitialEvents`.
    pub initial_events: Option<bool>,
    /// `timeoutSeconds`.
    pub timeout_seconds: Option<u64>,
    /// `resourceVersion`, when not empty.
    pub resource_version: Option<String>,
    /// `resourceVersionMatch`.
    pub version_match: Option<String>,
    /// `limit`.
    pub limit: Option<usize>,
    /// `continue`.
    pub continue_: Option<String>,
    /// `labelSelector`, as sent.
    pub labels: Option<String>,
    /// `fieldSelector`, as sent.
    pub fields: Option<String>,
    /// `includeObject`.
    pub include_object: Option<String>,
    /// `dryRun=All`.
    pub dry_run: bool,
    /// `fieldValidation`.
    pub field_validation: FieldValidation,
    /// `gracePeriodSeconds`.
    pub grace_seconds: Option<i64>,
    /// `propagationPolicy`.
    pub propagation: Option<String>,
    /// `orphanDependents`.
    pub orphan: Option<bool>,
    /// Everything else, for subresources with options of their own.
    pub others: Vec<(String, String)>,
}

impl Query {
    /// Parses a query string.
    ///
    /// # Errors
    /// 400 for values that cannot be.
    pub fn parse(text: &str) -> Result<Query, ApiError> {
        let mut query = Query::default();
        if text.is_empty() {
            return Ok(query);
        }
        let pairs = web::Query::<Vec<(String, String)>>::from_query(text)
            .map_err(|e| ApiError::BadRequest(format!("malformed query: {e}")))?
            .into_inner();
        for (name, value) in pairs {
            match name.as_str() {
                "watch" => query.watch = boolean(&value),
                "allowWatchBookmarks" => query.bookmarks = boolean(&value),
                "sendInitialEvents" => query.initial_events = Some(boolean(&value)),
                "timeoutSeconds" => query.timeout_seconds = Some(number(&name, &value)?),
                "resourceVersion" => query.resource_version = some(value),
                "resourceVersionMatch" => query.version_match = some(value),
                "limit" => query.limit = Some(number::<usize>(&name, &value)?).filter(|l| *l > 0),
                "continue" => query.continue_ = some(value),
                "labelSelector" => query.labels = some(value),
                "fieldSelector" => query.fields = some(value),
                "includeObject" => query.include_object = some(value),
                "dryRun" => query.dry_run = dry_run(&value)?,
                "fieldValidation" => query.field_validation = field_validation(&value)?,
                "gracePeriodSeconds" => query.grace_seconds = Some(number(&name, &value)?),
                "propagationPolicy" => query.propagation = some(value),
                "orphanDependents" => query.orphan = Some(boolean(&value)),
                _ => query.others.push((name, value)),
            }
        }
        Ok(query)
    }

    /// An option that only some subresources have.
    pub fn other(&self, name: &str) -> Option<&str> {
        self.others.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A switch that only some subresources have.
    pub fn switch(&self, name: &str) -> bool {
        self.other(name).is_some_and(boolean)
    }

    /// A number that only some subresources have.
    ///
    /// # Errors
    /// 400 when it is none.
    pub fn number<N: std::str::FromStr>(&self, name: &str) -> Result<Option<N>, ApiError> {
        self.other(name).map(|v| number(name, v)).transpose()
    }
}

/// As Go's query conversion: anything but these is true, so that `?watch` alone works.
fn boolean(value: &str) -> bool {
    !matches!(value, "false" | "0" | "False" | "FALSE" | "f" | "F")
}

fn some(value: String) -> Option<String> {
    Some(value).filter(|v| !v.is_empty())
}

fn number<N: std::str::FromStr>(name: &str, value: &str) -> Result<N, ApiError> {
    value.parse().map_err(|_| ApiError::BadRequest(format!("{name}: invalid value \"{value}\"")))
}

/// `dryRun`: only `All` exists.
pub fn dry_run(value: &str) -> Result<bool, ApiError> {
    match value {
        "All" => Ok(true),
        "" => Ok(false),
        other => Err(ApiError::BadRequest(format!(
            "dryRun: Unsupported value: \"{other}\": supported values: \"All\""
        ))),
    }
}

fn field_validation(value: &str) -> Result<FieldValidation, ApiError> {
    match value {
        "Ignore" => Ok(FieldValidation::Ignore),
        "Warn" | "" => Ok(FieldValidation::Warn),
        "Strict" => Ok(FieldValidation::Strict),
        other => Err(ApiError::BadRequest(format!(
            "fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \"Strict\", \"Warn\""
        ))),
    }
}

/// Which objects of a collection are meant.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    labels: Option<selector::LabelSelector>,
    fields: Option<selector::FieldSelector>,
    /// One object by its name (`get` and watches of one).
    name: Option<String>,
}

impl Filter {
    /// From a query's selectors.
    ///
    /// # Errors
    /// 400 with the parser's sentence.
    pub fn parse(kind: Kind, name: Option<&str>, query: &Query) -> Result<Filter, ApiError> {
        let labels = query.labels.as_deref().map(selector::LabelSelector::parse);
        let fields = query.fields.as_deref().map(|f| selector::FieldSelector::parse(kind, f));
        Ok(Filter {
            labels: labels.transpose().map_err(|e| ApiError::BadRequest(format!("labelSelector: {e}")))?,
            fields: fields.transpose().map_err(|e| ApiError::BadRequest(format!("fieldSelector: {e}")))?,
            name: name.map(str::to_owned),
        })
    }

    /// Whether the object is meant.
    pub fn matches(&self, object: &Object) -> bool {
        let labels = &*object.facet.meta.labels;
        self.name.as_deref().is_none_or(|n| n == &*object.key.name)
            && self.labels.as_ref().is_none_or(|s| s.matches(labels))
            && self.fields.as_ref().is_none_or(|s| s.matches(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_nonsense_is_refused_by_name() {
        let query = Query::parse("watch=1&limit=5&labelSelector=app%3Dweb&dryRun=All&x=y").unwrap();
        assert!(query.watch && query.dry_run);
        assert_eq!(query.limit, Some(5));
        assert_eq!(query.labels.as_deref(), Some("app=web"));
        assert_eq!(query.other("x"), Some("y"));
        for bad in ["limit=x", "timeoutSeconds=-1", "dryRun=Some", "fieldValidation=Maybe", "limit=-3"] {
            let error = Query::parse(bad).unwrap_err().to_string();
            let name = bad.split('=').next().unwrap();
            assert!(error.contains(name), "{bad}: {error}");
        }
    }

    #[test]
    fn an_empty_resource_version_is_none() {
        assert_eq!(Query::parse("resourceVersion=&limit=0").unwrap().resource_version, None);
        assert_eq!(Query::parse("resourceVersion=&limit=0").unwrap().limit, None);
    }
}
