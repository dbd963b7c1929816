//! What names, labels and keys may look like.
//!
//! Owns: the syntax checks of apimachinery's `util/validation`. Each check returns the sentences that say what is
//! wrong, in Kubernetes' words; none means all is well. Pure, and total on any text.

/// Longest DNS label (RFC 1123).
pub(crate) const LABEL_MAX: usize = 63;
/// Longest DNS name (RFC 1123).
pub(crate) const SUBDOMAIN_MAX: usize = 253;
/// Longest port name (RFC 6335).
const PORT_NAME_MAX: usize = 15;

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FMT: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035_FMT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const VALUE_FMT: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const CONFIG_KEY_FMT: &str = "[-._a-zA-Z0-9]+";

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// First and last byte pass `edge`, those between pass `inner`; empty does not match.
fn shaped(text: &str, edge: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    match text.as_bytes() {
        [] => false,
        [only] => edge(*only),
        [first, middle @ .., last] => edge(*first) && edge(*last) && middle.iter().all(|b| inner(*b)),
    }
}

fn is_label(text: &str) -> bool {
    shaped(text, lower_alnum, |b| lower_alnum(b) || b == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_qualified(text: &str) -> bool {
    shaped(text, |b| b.is_ascii_alphanumeric(), |b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn too_long(text: &str, max: usize) -> Option<String> {
    (text.len() > max).then(|| format!("must be no more than {max} characters"))
}

fn regex_error(what: &str, fmt: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}'")).collect();
    format!("{what} (e.g. {}, regex used for validation is '{fmt}')", examples.join(",  or "))
}

/// A DNS label: names of containers, volumes, namespaces.
pub(crate) fn dns1123_label(text: &str) -> Vec<String> {
    let mut faults: Vec<String> = too_long(text, LABEL_MAX).into_iter().collect();
    if !is_label(text) {
        // What would be a fine subdomain gets the shorter sentence.
        if is_subdomain(text) {
            faults.push("must not contain dots".into());
        } else {
            faults.push(regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                 start and end with an alphanumeric character",
                LABEL_FMT,
                &["my-name", "123-abc"],
            ));
        }
    }
    faults
}

/// A DNS name: names of most objects.
pub(crate) fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut faults: Vec<String> = too_long(text, SUBDOMAIN_MAX).into_iter().collect();
    if !is_subdomain(text) {
        faults.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character",
            SUBDOMAIN_FMT,
            &["example.com"],
        ));
    }
    faults
}

/// A DNS label that begins with a letter: names of services.
pub(crate) fn dns1035_label(text: &str) -> Vec<String> {
    let mut faults: Vec<String> = too_long(text, LABEL_MAX).into_iter().collect();
    if !(is_label(text) && text.as_bytes()[0].is_ascii_lowercase()) {
        faults.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character",
            LABEL_1035_FMT,
            &["my-name", "abc-123"],
        ));
    }
    faults
}

/// A label's or annotation's key: `name` or `example.com/name`.
pub(crate) fn qualified_name(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let parts: Vec<&str> = text.splitn(3, '/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".into());
            } else {
                faults.extend(dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            let rest = regex_error(
                "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                 with an alphanumeric character",
                QUALIFIED_FMT,
                &["MyName", "my.name", "123-abc"],
            );
            return vec![format!(
                "{rest} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        faults.push(format!("name part must be no more than {LABEL_MAX} characters"));
    }
    if !is_qualified(name) {
        faults.push(format!(
            "name part {}",
            regex_error(
                "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                 alphanumeric character",
                QUALIFIED_FMT,
                &["MyName", "my.name", "123-abc"],
            )
        ));
    }
    faults
}

/// A label's value; may be empty.
pub(crate) fn label_value(text: &str) -> Vec<String> {
    let mut faults: Vec<String> = too_long(text, LABEL_MAX).into_iter().collect();
    if !text.is_empty() && !is_qualified(text) {
        faults.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character",
            VALUE_FMT,
            &["MyValue", "my_value", "12345"],
        ));
    }
    faults
}

/// A key of a configmap or secret.
pub(crate) fn config_map_key(text: &str) -> Vec<String> {
    let mut faults: Vec<String> = too_long(text, SUBDOMAIN_MAX).into_iter().collect();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if text.is_empty() || !text.bytes().all(allowed) {
        faults.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            CONFIG_KEY_FMT,
            &["key.name", "KEY_NAME", "key-name"],
        ));
    } else if text == "." {
        faults.push("must not be '.'".into());
    } else if text == ".." {
        faults.push("must not be '..'".into());
    } else if text.starts_with("..") {
        faults.push("must not start with '..'".into());
    }
    faults
}

/// A name of an environment variable: any printable ASCII but `=`.
pub(crate) fn env_var_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .into(),
    ]
}

/// A container port's name (IANA service name).
pub(crate) fn port_name(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > PORT_NAME_MAX {
        faults.push(format!("must be no more than {PORT_NAME_MAX} characters"));
    }
    if !text.bytes().all(|b| lower_alnum(b) || b == b'-') {
        faults.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        faults.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        faults.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        faults.push("must not begin or end with a hyphen".into());
    }
    faults
}

/// A port's number.
pub(crate) fn port_number(port: i32) -> Vec<String> {
    if (1..=65_535).contains(&port) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".into()]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Check = fn(&str) -> Vec<String>;

    #[test]
    fn good_names_pass_and_bad_ones_do_not() {
        let long = "a".repeat(64);
        let rows: [(&str, Check, &[&str], &[&str]); 7] = [
            ("label", dns1123_label, &["a", "a-b", "1a", "123"], &["", "-a", "a-", "A", "a.b", "a_b", &long]),
            (
                "subdomain",
                dns1123_subdomain,
                &["a", "a.b-c.d", "0"],
                &["", ".", "a..b", "a.-b", "A.b", "a/b"],
            ),
            ("service", dns1035_label, &["a", "web-1"], &["", "1a", "a.b", "a-"]),
            (
                "key",
                qualified_name,
                &["a", "A_b.c", "example.com/a"],
                &["", "/a", "a/", "a/b/c", "-a", "a b", "Ex.com/a"],
            ),
            ("value", label_value, &["", "a", "A_b.c"], &["-", "a b", "a/b", &long]),
            ("config key", config_map_key, &["a", ".a", "A-b_c"], &["", ".", "..", "..a", "a/b", "a b"]),
            ("port", port_name, &["http", "a-1"], &["", "1", "a--b", "-a", "a-", "HTTP", "aaaaaaaaaaaaaaaa"]),
        ];
        for (what, check, good, bad) in rows {
            for text in good {
                assert_eq!(check(text), Vec::<String>::new(), "{what} {text:?}");
            }
            for text in bad {
                assert!(!check(text).is_empty(), "{what} {text:?}");
            }
        }
    }

    #[test]
    fn faults_are_told_in_kubernetes_words() {
        assert_eq!(
            dns1123_subdomain("A_b"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
              must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(
            label_value("a b"),
            [
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
              start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
              for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
            ]
        );
        assert_eq!(port_number(0), ["must be between 1 and 65535, inclusive"]);
    }

    proptest! {
        #[test]
        fn the_regular_expressions_in_the_sentences_are_what_is_checked(
            label in LABEL_FMT, subdomain in SUBDOMAIN_FMT, service in LABEL_1035_FMT, qualified in QUALIFIED_FMT,
            value in VALUE_FMT, key in CONFIG_KEY_FMT, at: proptest::sample::Index, wrong in "[^-._a-zA-Z0-9/]",
        ) {
            let rows: [(Check, String, usize); 6] = [
                (dns1123_label, label, LABEL_MAX),
                (dns1123_subdomain, subdomain, SUBDOMAIN_MAX),
                (dns1035_label, service, LABEL_MAX),
                (qualified_name, qualified, LABEL_MAX),
                (label_value, value, LABEL_MAX),
                (config_map_key, key, SUBDOMAIN_MAX),
            ];
            for (row, (check, text, max)) in rows.into_iter().enumerate() {
                let dots = row == 5 && (text.starts_with("..") || text == ".");
                prop_assert_eq!(check(&text).is_empty(), text.len() <= max && !dots, "{} {:?}", row, text);
                let mut broken = text.clone();
                broken.insert_str(at.index(text.len() + 1), &wrong);
                prop_assert!(!check(&broken).is_empty(), "{} {:?}", row, broken);
                if row < 5 {
                    let edges = [format!("-{text}"), format!("{text}-")];
                    prop_assert!(edges.iter().all(|e| !check(e).is_empty()), "{} {:?}", row, edges);
                }
                let long = text.clone() + &"a".repeat(max + 1);
                prop_assert!(!check(&long).is_empty(), "{} {:?}", row, long);
            }
        }

        #[test]
        fn no_check_panics(text in any::<String>()) {
            let checks: [Check; 8] = [dns1123_label, dns1123_subdomain, dns1035_label, qualified_name, label_value,
                                      config_map_key, env_var_name, port_name];
            for check in checks {
                check(&text);
            }
        }
    }
}
