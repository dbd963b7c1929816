//! Label selectors as in query strings: `app in (a,b),!tier`. Field selectors are in `field_selector.rs`.
//!
//! Owns: the grammar, the sentences for what is none, and the matching rules of apimachinery's `labels` package.
//! Invariant: what a selector prints is read back as the same selector.

use std::{collections::BTreeSet, fmt};

pub use super::field_selector::FieldSelector;
use super::{Labelled, Labels, names};

/// A parsed label selector: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Exists,
    DoesNotExist,
    Equals,
    DoubleEquals,
    NotEquals,
    In,
    NotIn,
    GreaterThan,
    LessThan,
}

impl LabelSelector {
    /// Parses `labelSelector=`; an empty text selects everything.
    ///
    /// # Errors
    /// A sentence for the client.
    pub fn parse(text: &str) -> Result<LabelSelector, String> {
        let mut parser = Parser { tokens: lex(text), at: 0 };
        Ok(LabelSelector { requirements: parser.requirements()? })
    }

    /// Selects what bears all of these labels.
    pub fn from_map(labels: &Labels) -> LabelSelector {
        let requirements = labels
            .iter()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::Equals,
                values: BTreeSet::from([value.clone()]),
            })
            .collect();
        LabelSelector { requirements }
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether these labels are selected.
    pub fn matches(&self, labels: &impl Labelled) -> bool {
        self.requirements.iter().all(|r| r.matches(labels.label(&r.key)))
    }
}

impl Requirement {
    fn new(key: String, operator: Operator, values: BTreeSet<String>) -> Result<Requirement, String> {
        if let Some(fault) = names::qualified_name(&key).into_iter().next() {
            return Err(format!("key: Invalid value: {key:?}: {fault}"));
        }
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return Err(
                    "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty"
                        .to_owned(),
                );
            }
            Operator::GreaterThan | Operator::LessThan
                if values.iter().any(|v| v.parse::<i64>().is_err()) =>
            {
                let shown: Vec<&str> = values.iter().map(String::as_str).collect();
                return Err(format!(
                    "values[0]: Invalid value: {:?}: for 'Gt', 'Lt' operators, the value must be an integer",
                    shown.join(",")
                ));
            }
            _ => {}
        }
        for (index, value) in values.iter().enumerate() {
            if let Some(fault) = names::label_value(value).into_iter().next() {
                return Err(format!("values[{index}][{key}]: Invalid value: {value:?}: {fault}"));
            }
        }
        Ok(Requirement { key, operator, values })
    }

    fn matches(&self, label: Option<&str>) -> bool {
        let wanted = || self.values.first().and_then(|v| v.parse::<i64>().ok());
        let actual = || label.and_then(|v| v.parse::<i64>().ok());
        match self.operator {
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::Equals | Operator::DoubleEquals | Operator::In => {
                label.is_some_and(|v| self.values.contains(v))
            }
            Operator::NotEquals | Operator::NotIn => label.is_none_or(|v| !self.values.contains(v)),
            Operator::GreaterThan => actual().zip(wanted()).is_some_and(|(a, w)| a > w),
            Operator::LessThan => actual().zip(wanted()).is_some_and(|(a, w)| a < w),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Requirement { key, operator, values } = self;
        let mut joined = values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        if joined.is_empty() && matches!(operator, Operator::In | Operator::NotIn) {
            // `()` would be no value at all instead of the empty one.
            joined.push(',');
        }
        match operator {
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::Equals => write!(f, "{key}={joined}"),
            Operator::DoubleEquals => write!(f, "{key}=={joined}"),
            Operator::NotEquals => write!(f, "{key}!={joined}"),
            Operator::In => write!(f, "{key} in ({joined})"),
            Operator::NotIn => write!(f, "{key} notin ({joined})"),
            Operator::GreaterThan => write!(f, "{key}>{joined}"),
            Operator::LessThan => write!(f, "{key}<{joined}"),
        }
    }
}

/// `,`, `(`, `!=`, `in`… as written, or a word.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Symbol(&'static str),
    Word(String),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Symbol(text) => text,
            Token::Word(text) => text,
            Token::End => "",
        }
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self, Token::Symbol(s) if *s == symbol)
    }
}

/// Longer symbols first, so that `==` is not read as two.
const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];
const SPECIAL: &str = "=!(),<>";

fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let symbol = SYMBOLS.into_iter().find(|s| rest.starts_with(s)).unwrap_or_default();
        let length = if symbol.is_empty() {
            let end = rest.find(|c: char| c.is_whitespace() || SPECIAL.contains(c)).unwrap_or(rest.len());
            tokens.push(match &rest[..end] {
                "in" => Token::Symbol("in"),
                "notin" => Token::Symbol("notin"),
                word => Token::Word(word.to_owned()),
            });
            end
        } else {
            tokens.push(Token::Symbol(symbol));
            symbol.len()
        };
        rest = rest[length..].trim_start();
    }
    tokens.push(Token::End);
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    /// The next token where a key or a value is expected: there, `in` and `notin` are words like others.
    fn peek_value(&self) -> Token {
        match self.peek() {
            Token::Symbol(word @ ("in" | "notin")) => Token::Word((*word).to_owned()),
            other => other.clone(),
        }
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek_value() {
                Token::Word(_) | Token::Symbol("!") => {}
                Token::End => return Ok(requirements),
                other => {
                    let found = other.text();
                    return Err(format!("found '{found}', expected: !, identifier, or 'end of string'"));
                }
            }
            requirements.push(self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?);
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Symbol(",") => match self.peek_value() {
                    Token::Word(_) | Token::Symbol("!") => {}
                    other => {
                        return Err(format!("found '{}', expected: identifier after ','", other.text()));
                    }
                },
                other => {
                    return Err(format!("found '{}', expected: ',' or 'end of string'", other.text()));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = self.peek().is("!");
        if negated {
            self.next();
        }
        let key = self.peek_value();
        self.next();
        let key = match key {
            Token::Word(key) => key,
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, BTreeSet::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement::new(key, Operator::Exists, BTreeSet::new());
        }
        let operator = match self.next() {
            Token::Symbol("=") => Operator::Equals,
            Token::Symbol("==") => Operator::DoubleEquals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol("in") => Operator::In,
            Token::Symbol("notin") => Operator::NotIn,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            other => {
                return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text()));
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => BTreeSet::from([self.value()?]),
        };
        Requirement::new(key, operator, values)
    }

    /// One value; none is the empty one.
    fn value(&mut self) -> Result<String, String> {
        match self.peek_value() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            Token::Word(value) => {
                self.next();
                Ok(value)
            }
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    /// `(a,b)`; an empty place between commas is the empty value.
    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        let open = self.next();
        if !open.is("(") {
            return Err(format!("found '{}' expected: '('", open.text()));
        }
        let mut values = BTreeSet::new();
        if self.peek().is(")") {
            self.next();
            return Ok(values);
        }
        loop {
            match self.peek_value() {
                Token::Word(value) => {
                    self.next();
                    values.insert(value);
                }
                Token::Symbol("," | ")") => {
                    values.insert(String::new());
                }
                other => {
                    return Err(format!("found '{}', expected: ',', ')' or identifier", other.text()));
                }
            }
            match self.next() {
                Token::Symbol(")") => return Ok(values),
                Token::Symbol(",") => {}
                other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(text: &str) -> Labels {
        text.split(',').filter_map(|p| p.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn selectors_select_as_kubernetes_does() {
        for (selector, yes, no) in [
            ("", "a=1", None),
            ("a=1", "a=1,b=2", Some("a=2")),
            ("a==1", "a=1", Some("b=1")),
            ("a!=1", "b=1", Some("a=1")),
            ("a", "a=", Some("b=1")),
            ("!a", "b=1", Some("a=1")),
            ("a in (1,2)", "a=2", Some("a=3")),
            ("a notin (1,2)", "b=1", Some("a=1")),
            ("a in (1,)", "a=", Some("a=2")),
            ("a>5", "a=6", Some("a=5")),
            ("a<5", "a=4", Some("a=x")),
            ("a=", "a=", Some("a=1")),
            (" a = 1 , b in ( x , y ) , !c ", "a=1,b=y", Some("a=1,b=y,c=1")),
            ("a=in", "a=in", Some("a=1")),
            ("x.io/a in (notin)", "x.io/a=notin", Some("x.io/a=1")),
        ] {
            let parsed = LabelSelector::parse(selector).unwrap_or_else(|e| panic!("{selector}: {e}"));
            assert!(parsed.matches(&labels(yes)), "{selector} / {yes}");
            if let Some(no) = no {
                assert!(!parsed.matches(&labels(no)), "{selector} / {no}");
            }
        }
    }

    #[test]
    fn what_is_no_selector_is_told_in_kubernetes_words() {
        for (selector, text) in [
            ("a,", "found '', expected: identifier after ','"),
            (",a", "found ',', expected: !, identifier, or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("!a=b", "found '=', expected: ',' or 'end of string'"),
            (
                "a in ()",
                "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set \
                 can't be empty",
            ),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value \
                 must be an integer",
            ),
        ] {
            assert_eq!(LabelSelector::parse(selector), Err(text.to_owned()), "{selector}");
        }
        assert!(
            LabelSelector::parse("-a=1")
                .unwrap_err()
                .starts_with("unable to parse requirement: key: Invalid")
        );
        assert!(LabelSelector::parse("a=-").unwrap_err().contains("values[0][a]: Invalid value: \"-\""));
    }

    #[test]
    fn a_map_selects_what_bears_all_its_labels() {
        let selector = LabelSelector::from_map(&labels("a=1,b=2"));
        assert!(selector.matches(&labels("a=1,b=2,c=3")) && !selector.matches(&labels("a=1")));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_selectors_round_trip(
            text in any::<String>(), near in "[ab/.=!(),<> 1-]{0,24}( (in|notin) \\([a-c,]{0,6}\\))?"
        ) {
            for text in [text, near] {
                if let Ok(selector) = LabelSelector::parse(&text) {
                    prop_assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector));
                }
            }
        }
    }
}
