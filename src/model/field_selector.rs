//! Field selectors as in query strings: `metadata.name=web,status.phase!=Failed`.
//!
//! Owns: the grammar of apimachinery's `fields` package and the list of fields that each kind can be selected by.
//! Fields that a facet carries are matched on it; for the others the document is read, once for each match.

use std::{cell::OnceCell, fmt};

use serde_json::Value;

use super::{EventText, Kind, KindFacet, Object};

/// A parsed field selector: all terms must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: &'static str,
    equal: bool,
    value: String,
}

/// The fields by which objects of a kind can be selected, beside name and namespace.
fn fields(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Pod => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        Kind::Event => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        Kind::Node => &["spec.unschedulable"],
        Kind::Namespace => &["status.phase"],
        Kind::Secret => &["type"],
        Kind::ReplicationController => &["status.replicas"],
        Kind::Service => &["spec.clusterIP", "spec.type"],
        Kind::Endpoints | Kind::ConfigMap | Kind::ServiceAccount => &[],
    }
}

impl FieldSelector {
    /// Parses `fieldSelector=` for a kind; an empty text selects everything.
    ///
    /// # Errors
    /// A sentence for the client: `field label not supported: x`.
    pub fn parse(kind: Kind, text: &str) -> Result<FieldSelector, String> {
        let mut terms = Vec::new();
        for part in split_unescaped(text, ',').into_iter().filter(|p| !p.is_empty()) {
            let (field, equal, raw) = split_term(part)
                .ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{part}'"))?;
            let value = unescape(raw)?;
            let known = ["metadata.name", "metadata.namespace"].iter().chain(fields(kind));
            let field = known
                .copied()
                .find(|known| *known == field)
                .ok_or_else(|| format!("field label not supported: {field}"))?;
            terms.push(Term { field, equal, value });
        }
        Ok(FieldSelector { terms })
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The only name that can be selected, if there is one: then a LIST is a look-up.
    pub fn name(&self) -> Option<&str> {
        self.terms.iter().find(|t| t.field == "metadata.name" && t.equal).map(|t| t.value.as_str())
    }

    /// Whether this object is selected.
    pub fn matches(&self, object: &Object) -> bool {
        let document = OnceCell::new();
        self.terms.iter().all(|term| {
            let actual = value(object, term.field, &document);
            (actual == term.value) == term.equal
        })
    }
}

/// An object's value of a field, as text.
fn value(object: &Object, field: &str, document: &OnceCell<Value>) -> String {
    let read = |path: &str| {
        let root = document.get_or_init(|| serde_json::from_slice(&object.json).unwrap_or_default());
        let found = path.split('.').try_fold(root, |value, step| value.get(step));
        match found {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        }
    };
    let owned = |text: &Option<String>| text.clone().unwrap_or_default();
    match (&object.facet.of, field) {
        (_, "metadata.name") => object.key.name.to_string(),
        (_, "metadata.namespace") => object.key.namespace.to_string(),
        (KindFacet::Pod(pod), "spec.nodeName") => {
            pod.node.as_ref().map(|n| n.as_str().to_owned()).unwrap_or_default()
        }
        (KindFacet::Pod(pod), "status.phase") => pod.phase.as_str().to_owned(),
        (KindFacet::Pod(pod), "status.podIP") => owned(&pod.ip),
        (KindFacet::Pod(pod), "spec.schedulerName") => {
            pod.scheduler.clone().unwrap_or_else(|| "default-scheduler".into())
        }
        (KindFacet::Pod(_), "spec.hostNetwork") => (read(field) == "true").to_string(),
        (KindFacet::Node(node), "spec.unschedulable") => node.cordoned.to_string(),
        (KindFacet::Event(event), field) => {
            let text = |text| event.text(text).to_owned();
            match field {
                "involvedObject.kind" => text(EventText::Kind),
                "involvedObject.namespace" => text(EventText::Namespace),
                "involvedObject.name" => text(EventText::Name),
                "involvedObject.uid" => text(EventText::Uid),
                "involvedObject.apiVersion" => text(EventText::ApiVersion),
                "involvedObject.resourceVersion" => text(EventText::ResourceVersion),
                "involvedObject.fieldPath" => text(EventText::FieldPath),
                "reason" => text(EventText::Reason),
                "type" => text(EventText::Type),
                "source" if !event.text(EventText::Component).is_empty() => text(EventText::Component),
                _ => read("reportingComponent"),
            }
        }
        (KindFacet::ReplicationController(_), "status.replicas") => match read(field) {
            none if none.is_empty() => "0".to_owned(),
            replicas => replicas,
        },
        _ => read(field),
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let sign = if term.equal { "=" } else { "!=" };
            write!(f, "{comma}{}{sign}", term.field)?;
            for c in term.value.chars() {
                if matches!(c, '\\' | ',' | '=') {
                    f.write_str("\\")?;
                }
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// Splits at a character that no backslash precedes.
fn split_unescaped(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == separator {
            parts.push(&text[start..at]);
            start = at + c.len_utf8();
        }
    }
    parts.push(&text[start..]);
    parts
}

/// `field`, whether it is to be equal, and the value with its escapes.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    term.char_indices().find_map(|(at, _)| {
        let (field, rest) = term.split_at(at);
        [("!=", false), ("==", true), ("=", true)]
            .into_iter()
            .find_map(|(sign, equal)| rest.strip_prefix(sign).map(|value| (field, equal, value)))
    })
}

fn unescape(raw: &str) -> Result<String, String> {
    let mut value = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => value.push(escaped),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(format!("invalid field selector: invalid escape sequence: {sequence}"));
                }
            },
            ',' | '=' => {
                return Err(format!("invalid field selector: unescaped character in value: {c}"));
            }
            other => value.push(other),
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::model::{Revision, seal_json};

    fn object(kind: Kind, mut json: Value) -> Object {
        json["metadata"] = json!({"name": "web", "namespace": "default", "uid": "u"});
        seal_json(kind, json.to_string().as_bytes()).unwrap().at(Revision(1))
    }

    #[test]
    fn each_kind_is_selected_by_its_fields() {
        let pod = object(
            Kind::Pod,
            json!({"spec": {"containers": [], "nodeName": "vm", "restartPolicy": "Never"},
                   "status": {"phase": "Running", "podIP": "10.0.0.1"}}),
        );
        let event = object(
            Kind::Event,
            json!({"involvedObject": {"kind": "Pod", "name": "web1", "uid": "x"}, "reason": "Started",
                   "type": "Normal", "reportingComponent": "kubelet"}),
        );
        let about = json!({"apiVersion": "v1", "kind": "Pod", "namespace": "a", "name": "p", "uid": "u",
            "resourceVersion": "7", "fieldPath": "spec.containers{c}"});
        let whole = json!({"involvedObject": about, "reason": "Why", "type": "Warning", "source": {"component": "who"}});
        let whole = object(Kind::Event, whole);
        let node = object(Kind::Node, json!({"spec": {"unschedulable": true}}));
        let secret = object(Kind::Secret, json!({"type": "Opaque"}));
        let rc = object(Kind::ReplicationController, json!({"spec": {}, "status": {"replicas": 3}}));
        for (object, selector, selected) in [
            (&pod, "metadata.name=web,metadata.namespace=default", true),
            (&pod, "spec.nodeName=vm,status.phase!=Succeeded,status.phase!=Failed", true),
            (&pod, "status.phase=Pending", false),
            (&pod, "spec.restartPolicy=Never,spec.hostNetwork=false", true),
            (&pod, "spec.schedulerName=default-scheduler,status.podIP=10.0.0.1", true),
            (&pod, "status.nominatedNodeName=", true),
            (&event, "involvedObject.name=web1,involvedObject.namespace=,involvedObject.kind=Pod", true),
            (&event, "involvedObject.uid==y", false),
            (&event, "source=kubelet,reportingComponent=kubelet,reason=Started,type!=Warning", true),
            (&whole, "involvedObject.apiVersion=v1,involvedObject.kind=Pod,involvedObject.namespace=a", true),
            (&whole, "involvedObject.name=p,involvedObject.uid=u,involvedObject.resourceVersion=7", true),
            (&whole, "involvedObject.fieldPath=spec.containers{c},reason=Why,type=Warning,source=who", true),
            (&whole, "reason=", false),
            (&node, "spec.unschedulable=true", true),
            (&secret, "type=Opaque", true),
            (&rc, "status.replicas=3", true),
        ] {
            let parsed = FieldSelector::parse(object.key.kind, selector).unwrap();
            assert_eq!(parsed.matches(object), selected, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_told() {
        for (selector, text) in [
            ("spec.foo=1", "field label not supported: spec.foo"),
            ("metadata.name", "invalid selector: 'metadata.name'; can't understand 'metadata.name'"),
            ("metadata.name=a=b", "invalid field selector: unescaped character in value: ="),
            ("metadata.name=a\\b", "invalid field selector: invalid escape sequence: \\b"),
        ] {
            assert_eq!(FieldSelector::parse(Kind::Pod, selector), Err(text.to_owned()), "{selector}");
        }
    }

    #[test]
    fn the_one_selectable_name_is_known() {
        let name = |text| FieldSelector::parse(Kind::Pod, text).unwrap().name().map(str::to_owned);
        assert_eq!(name("metadata.name=a"), Some("a".into()));
        assert_eq!(name("metadata.name!=a"), None);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_selectors_round_trip(
            text in any::<String>(), value in any::<String>(), near in "(metadata.name|type)(=|==|!=)[a\\\\,=]{0,6}"
        ) {
            let escaped = value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            for text in [text, near, format!("metadata.name={escaped}")] {
                if let Ok(selector) = FieldSelector::parse(Kind::Secret, &text) {
                    prop_assert_eq!(FieldSelector::parse(Kind::Secret, &selector.to_string()), Ok(selector));
                }
            }
            let whole = FieldSelector::parse(Kind::Secret, &format!("metadata.name={escaped}")).unwrap();
            prop_assert_eq!(whole.name(), Some(value.as_str()));
        }
    }
}
