//! Where a field is, and what is wrong with it, in Kubernetes' words.
//!
//! Owns: [`Path`], a field's place as a chain of borrowed steps (nothing is allocated while all is well), and
//! [`Faults`], which collects [`Cause`]s. Invariant: texts and reasons are those of apimachinery's `field.Error`, since
//! people and tools match on them.

use std::fmt::{self, Display};

use super::admit::Cause;

/// A document can be wrong in as many places as it is long; this many causes are told, which is more than anyone reads.
const MAX_CAUSES: usize = 256;

/// A field's place in a document.
#[derive(Clone, Copy)]
pub(crate) enum Path<'a> {
    /// The first field: `metadata`.
    Root(&'a str),
    /// A field in a struct.
    Field(&'a Path<'a>, &'a str),
    /// An item of a list.
    Index(&'a Path<'a>, usize),
    /// A value of a map.
    Key(&'a Path<'a>, &'a str),
}

impl<'a> Path<'a> {
    /// A field below this one.
    pub(crate) fn field(&'a self, name: &'a str) -> Path<'a> {
        Path::Field(self, name)
    }

    /// An item of this list.
    pub(crate) fn index(&'a self, index: usize) -> Path<'a> {
        Path::Index(self, index)
    }

    /// A value of this map.
    pub(crate) fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root(name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Path::Key(parent, key) => write!(f, "{parent}[{key}]"),
        }
    }
}

/// A value as a message shows it: texts in quotes, numbers as they are.
pub(crate) trait Shown {
    /// The text to show.
    fn shown(&self) -> String;
}

impl Shown for str {
    fn shown(&self) -> String {
        format!("{self:?}")
    }
}

impl Shown for String {
    fn shown(&self) -> String {
        self.as_str().shown()
    }
}

macro_rules! shown_plainly {
    ($($type:ty),*) => {$(
        impl Shown for $type {
            fn shown(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

shown_plainly!(i32, i64, usize, bool);

/// A value that is shown exactly as written: for maps and structs.
pub(crate) struct Raw(pub(crate) String);

impl Shown for Raw {
    fn shown(&self) -> String {
        self.0.clone()
    }
}

/// What was found wrong so far.
#[derive(Default)]
pub(crate) struct Faults(Vec<Cause>);

impl Faults {
    /// Nothing was found: `Ok`; else the causes.
    pub(crate) fn into_result(self) -> Result<(), Vec<Cause>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }

    /// How many were found.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn add(&mut self, at: &Path<'_>, reason: &'static str, head: &str, detail: &str) {
        if self.0.len() < MAX_CAUSES {
            let message = if detail.is_empty() { head.to_owned() } else { format!("{head}: {detail}") };
            self.0.push(Cause { field: at.to_string(), reason, message });
        }
    }

    /// The field must be there; `detail` may be empty.
    pub(crate) fn required(&mut self, at: &Path<'_>, detail: &str) {
        self.add(at, "FieldValueRequired", "Required value", detail);
    }

    /// The value does not do.
    pub(crate) fn invalid(&mut self, at: &Path<'_>, value: &(impl Shown + ?Sized), detail: &str) {
        self.add(at, "FieldValueInvalid", &format!("Invalid value: {}", value.shown()), detail);
    }

    /// One fault for each of these texts.
    pub(crate) fn invalid_each(&mut self, at: &Path<'_>, value: &str, details: Vec<String>) {
        for detail in details {
            self.invalid(at, value, &detail);
        }
    }

    /// The value is there twice.
    pub(crate) fn duplicate(&mut self, at: &Path<'_>, value: &(impl Shown + ?Sized)) {
        self.add(at, "FieldValueDuplicate", &format!("Duplicate value: {}", value.shown()), "");
    }

    /// The value is none of the known ones.
    pub(crate) fn unsupported(&mut self, at: &Path<'_>, value: &(impl Shown + ?Sized), known: &[&str]) {
        let known: Vec<String> = known.iter().map(|k| format!("{k:?}")).collect();
        let detail =
            if known.is_empty() { String::new() } else { format!("supported values: {}", known.join(", ")) };
        self.add(at, "FieldValueNotSupported", &format!("Unsupported value: {}", value.shown()), &detail);
    }

    /// The field may not be set, or not be changed.
    pub(crate) fn forbidden(&mut self, at: &Path<'_>, detail: &str) {
        self.add(at, "FieldValueForbidden", "Forbidden", detail);
    }

    /// The value names something that is not there.
    pub(crate) fn not_found(&mut self, at: &Path<'_>, value: &str) {
        self.add(at, "FieldValueNotFound", &format!("Not found: {}", value.shown()), "");
    }

    /// The value has more than so many bytes.
    pub(crate) fn too_long(&mut self, at: &Path<'_>, max: usize) {
        self.add(at, "FieldValueTooLong", "Too long", &format!("may not be more than {max} bytes"));
    }
}

/// Requires one of a closed set of words; an empty one is `Required value`.
pub(crate) fn one_of(faults: &mut Faults, at: &Path<'_>, value: Option<&str>, known: &[&str]) {
    match value.unwrap_or_default() {
        "" => faults.required(at, ""),
        value if known.contains(&value) => {}
        value => faults.unsupported(at, value, known),
    }
}

/// As [`one_of`], but the value may be absent.
pub(crate) fn one_of_if_set(faults: &mut Faults, at: &Path<'_>, value: Option<&str>, known: &[&str]) {
    if value.is_some_and(|v| !v.is_empty()) {
        one_of(faults, at, value, known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_read_like_kubernetes() {
        let mut faults = Faults::default();
        let spec = Path::Root("spec");
        let containers = spec.field("containers");
        let first = containers.index(0);
        faults.required(&first.field("image"), "");
        faults.invalid(&first.field("name"), "A_b", "must be lower case");
        faults.invalid(&spec.field("replicas"), &-1, "must be greater than or equal to 0");
        faults.unsupported(&spec.field("restartPolicy"), "x", &["Always", "Never"]);
        faults.duplicate(&first.field("name"), "a");
        faults.forbidden(&spec, "no");
        let texts: Vec<String> = faults
            .into_result()
            .unwrap_err()
            .into_iter()
            .map(|c| format!("{} {} {}", c.field, c.reason, c.message))
            .collect();
        assert_eq!(
            texts,
            [
                "spec.containers[0].image FieldValueRequired Required value",
                "spec.containers[0].name FieldValueInvalid Invalid value: \"A_b\": must be lower case",
                "spec.replicas FieldValueInvalid Invalid value: -1: must be greater than or equal to 0",
                "spec.restartPolicy FieldValueNotSupported Unsupported value: \"x\": supported values: \"Always\", \"Never\"",
                "spec.containers[0].name FieldValueDuplicate Duplicate value: \"a\"",
                "spec FieldValueForbidden Forbidden: no",
            ]
        );
    }

    #[test]
    fn the_number_of_causes_is_bounded() {
        let mut faults = Faults::default();
        for _ in 0..10 * MAX_CAUSES {
            faults.required(&Path::Root("spec"), "");
        }
        assert_eq!(faults.len(), MAX_CAUSES);
    }
}
