//! Resources that are made whenever they are read, of what is known anyway.
//!
//! Owns: how such resources are asked for and answered in every form. They can be read and listed, not watched.

use actix_web::{HttpRequest, HttpResponse};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    error::ApiError,
    query::Query,
    read::json_response,
    render::{self, Form},
};
use crate::model::{Labels, selector::LabelSelector};

/// What all objects of such a resource have in common.
pub(super) struct Resource {
    pub kind: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    /// The names of a table's columns; the first is that of the objects' names.
    pub columns: &'static [&'static str],
}

/// One object.
pub(super) trait Made {
    fn labels(&self) -> &Labels;
    fn metadata(&self) -> Value;
    /// The whole of it but kind, version and metadata.
    fn content(&self) -> Value;
    /// Its row in a table.
    fn cells(&self, now: Timestamp) -> Value;
}

/// What is asked for.
#[derive(Debug)]
pub(super) struct Asked {
    labels: Option<LabelSelector>,
    form: Form,
}

impl Resource {
    /// Reads a request.
    ///
    /// # Errors
    /// 405 for watches, 406, 400 for selectors that are malformed or not supported.
    pub(super) fn asked(&self, request: &HttpRequest) -> Result<Asked, ApiError> {
        let query = Query::parse(request.query_string())?;
        if query.watch {
            return Err(ApiError::MethodNotAllowed);
        }
        if query.fields.is_some() {
            let text = format!("{} have no field selectors: name one, or use labels", self.plural);
            return Err(ApiError::BadRequest(text));
        }
        let labels = query.labels.as_deref().map(LabelSelector::parse).transpose();
        let labels = labels.map_err(|e| ApiError::BadRequest(format!("labelSelector: {e}")))?;
        Ok(Asked { labels, form: render::negotiate(request, query.include_object.as_deref())? })
    }

    /// Answers with the one of that name, or with those that are asked for.
    ///
    /// # Errors
    /// 404: there is none of that name.
    pub(super) fn answer<M: Made>(
        &self,
        asked: &Asked,
        name: Option<&str>,
        mut objects: Vec<M>,
        revision: u64,
        now: Timestamp,
    ) -> Result<HttpResponse, ApiError> {
        objects.retain(|object| asked.labels.as_ref().is_none_or(|labels| labels.matches(object.labels())));
        let body = match (name, objects.first()) {
            (Some(name), None) => {
                let resource = format!("{}.{}", self.plural, self.group);
                return Err(ApiError::NotFound { resource, name: name.to_owned() });
            }
            (Some(_), Some(object)) if asked.form == Form::Whole => self.whole(object),
            (Some(_), Some(object)) if asked.form == Form::Metadata => partial(object),
            _ => self.list(&objects, asked.form, revision, now),
        };
        Ok(json_response(200, body.to_string()))
    }

    fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    /// An object in full.
    pub(super) fn whole(&self, object: &impl Made) -> Value {
        let mut whole = object.content();
        whole["kind"] = self.kind.into();
        whole["apiVersion"] = self.api_version().into();
        whole["metadata"] = object.metadata();
        whole
    }

    fn list(&self, objects: &[impl Made], form: Form, revision: u64, now: Timestamp) -> Value {
        let metadata = json!({ "resourceVersion": revision.to_string() });
        match form {
            Form::Whole => {
                let items: Vec<Value> = objects.iter().map(|object| self.whole(object)).collect();
                json!({ "kind": format!("{}List", self.kind), "apiVersion": self.api_version(),
                    "metadata": metadata, "items": items })
            }
            Form::Metadata => json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata, "items": objects.iter().map(partial).collect::<Vec<_>>() }),
            Form::Table { version, .. } => {
                let column = |(at, name): (usize, &&str)| {
                    let format = if at == 0 { "name" } else { "" };
                    json!({ "name": name, "type": "string", "format": format, "description": "", "priority": 0 })
                };
                let columns: Vec<Value> = self.columns.iter().enumerate().map(column).collect();
                let row = |object| json!({ "cells": Made::cells(object, now), "object": partial(object) });
                json!({ "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
                    "columnDefinitions": columns, "rows": objects.iter().map(row).collect::<Vec<_>>() })
            }
        }
    }
}

fn partial(object: &impl Made) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.metadata() })
}
