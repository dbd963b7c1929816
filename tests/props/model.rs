//! Texts and patches of the API, made from parts whose meaning is known.

use proptest::prelude::*;
use serde_json::{Value, json};
use troupe::{
    fuzzing,
    model::{Labels, quantity::parse_milli, selector::LabelSelector},
};

/// Suffixes and what they multiply by, as a fraction.
const SUFFIXES: [(&str, i128, i128); 17] = [
    ("", 1, 1),
    ("n", 1, 1_000_000_000),
    ("u", 1, 1_000_000),
    ("m", 1, 1_000),
    ("k", 1_000, 1),
    ("M", 1_000_000, 1),
    ("G", 1_000_000_000, 1),
    ("T", 1_000_000_000_000, 1),
    ("P", 1_000_000_000_000_000, 1),
    ("Ki", 1 << 10, 1),
    ("Mi", 1 << 20, 1),
    ("Gi", 1 << 30, 1),
    ("Ti", 1 << 40, 1),
    ("Pi", 1 << 50, 1),
    ("e3", 1_000, 1),
    ("E-2", 1, 100),
    ("e0", 1, 1),
];

/// A quantity's text, and its value in thousandths, rounded away from zero.
fn quantity() -> impl Strategy<Value = (String, i128)> {
    (any::<i32>(), 0..5_u32, prop::sample::select(SUFFIXES.to_vec())).prop_map(
        |(digits, decimals, (suffix, times, over))| {
            let scale = 10_u32.pow(decimals);
            let (whole, part) = (digits.unsigned_abs() / scale, digits.unsigned_abs() % scale);
            let sign = if digits < 0 { "-" } else { "" };
            let width = decimals as usize;
            let text = match decimals {
                0 => format!("{sign}{whole}{suffix}"),
                _ => format!("{sign}{whole}.{part:0width$}{suffix}"),
            };
            let (value, over) = (i128::from(digits) * times * 1000, over * i128::from(scale));
            let rounded = value / over + if value % over == 0 { 0 } else { value.signum() };
            (text, rounded)
        },
    )
}

/// A requirement's text and what it means.
#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    operator: &'static str,
    values: Vec<String>,
}

impl Requirement {
    fn text(&self) -> String {
        let (key, first) = (&self.key, self.values.first().map_or("", String::as_str));
        match self.operator {
            "exists" => key.clone(),
            "!" => format!("!{key}"),
            "in" | "notin" => format!("{key} {} ({})", self.operator, self.values.join(",")),
            sign => format!("{key}{sign}{first}"),
        }
    }

    fn holds(&self, labels: &Labels) -> bool {
        let (label, first) = (labels.get(&self.key), self.values.first());
        match self.operator {
            "exists" => label.is_some(),
            "!" => label.is_none(),
            "in" => label.is_some_and(|l| self.values.contains(l)),
            "notin" => label.is_none_or(|l| !self.values.contains(l)),
            "!=" => label != first,
            _ => label == first,
        }
    }
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let operators = prop::sample::select(vec!["exists", "!", "in", "notin", "=", "==", "!="]);
    ("[abc]|in|x\\.io/a", operators, prop::collection::vec("[xyz]|notin|1", 1..4))
        .prop_map(|(key, operator, values)| Requirement { key, operator, values })
}

fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map("[abc]|in|x\\.io/a", "[xyz]|notin|1", 0..4)
        .prop_map(|labels| labels.into_iter().collect())
}

fn container() -> impl Strategy<Value = Value> {
    let port = (1..4_u16, "[ab]").prop_map(|(port, name)| json!({"containerPort": port, "name": name}));
    let env = ("[AB]", "[xy]").prop_map(|(name, value)| json!({"name": name, "value": value}));
    ("[abc]", "[ij]", prop::collection::vec(port, 0..3), prop::collection::vec(env, 0..3)).prop_map(
        |(name, image, ports, env)| json!({"name": name, "image": image, "ports": ports, "env": env}),
    )
}

fn pod() -> impl Strategy<Value = Value> {
    let containers = prop::collection::vec(container(), 0..4);
    let finalizers = prop::collection::vec("[ab]\\.io/[xy]", 0..3);
    let labels = prop::collection::btree_map("[ab]", "[xy]", 0..3);
    let volumes = prop::collection::vec(
        ("[vw]", any::<bool>()).prop_map(|(name, empty)| match empty {
            true => json!({"name": name, "emptyDir": {}}),
            false => json!({"name": name, "hostPath": {"path": "/x"}}),
        }),
        0..3,
    );
    (containers, finalizers, labels, volumes).prop_map(|(containers, finalizers, labels, volumes)| {
        json!({
            "metadata": {"name": "p", "labels": labels, "finalizers": finalizers},
            "spec": {"containers": containers, "volumes": volumes},
        })
    })
}

proptest! {
    #[test]
    fn a_quantity_means_what_its_parts_mean((text, milli) in quantity(), (other, other_milli) in quantity()) {
        prop_assert_eq!(parse_milli(&text), Ok(milli), "{}", text);
        // So the order of values is the order of what was parsed.
        prop_assert_eq!(parse_milli(&text).unwrap().cmp(&parse_milli(&other).unwrap()), milli.cmp(&other_milli));
        fuzzing::quantity(text.as_bytes());
    }

    #[test]
    fn a_selector_matches_what_its_requirements_say_also_when_printed_and_read_again(
        requirements in prop::collection::vec(requirement(), 0..4),
        objects in prop::collection::vec(labels(), 1..6),
    ) {
        let text = requirements.iter().map(Requirement::text).collect::<Vec<_>>().join(",");
        let selector = LabelSelector::parse(&text).unwrap();
        let again = LabelSelector::parse(&selector.to_string()).unwrap();
        for labels in objects {
            let expected = requirements.iter().all(|r| r.holds(&labels));
            prop_assert_eq!(selector.matches(&labels), expected, "{} on {:?}", text, labels);
            prop_assert_eq!(again.matches(&labels), expected, "{} on {:?}", selector, labels);
        }
    }

    #[test]
    fn patches_without_nulls_say_what_is_to_be_so_twice_is_once(document in pod(), patch in pod(), format in 1..3_u8) {
        // 3 formats for each kind; kind 2 is the pod.
        let head = [3 * 2 + format];
        let (document, patch) = (document.to_string(), patch.to_string());
        fuzzing::patch(&[&head[..], document.as_bytes(), &[fuzzing::SEPARATOR], patch.as_bytes()].concat());
    }
}
