//! The fuzzers' targets on whatever comes: arbitrary bytes, and valid inputs that were damaged.

use proptest::prelude::*;
use troupe::fuzzing;

use super::seeds;

/// A change of some bytes. Places are taken modulo the length.
#[derive(Clone, Debug)]
enum Damage {
    Set(usize, u8),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Repeat(usize, usize, usize),
    Truncate(usize),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |place: &usize| place % (bytes.len() + 1);
        match self {
            Damage::Set(place, byte) => {
                let at = at(place);
                if let Some(old) = bytes.get_mut(at) {
                    *old = *byte;
                }
            }
            Damage::Insert(place, new) => {
                let at = at(place);
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Remove(place, count) => {
                let at = at(place);
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Damage::Repeat(place, count, times) => {
                let at = at(place);
                let part = bytes[at..(at + count).min(bytes.len())].repeat(*times);
                bytes.splice(at..at, part);
            }
            Damage::Truncate(place) => bytes.truncate(at(place)),
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = any::<usize>();
    // What means something to one of the grammars.
    let telling = prop::sample::select(br#"{}[]",:\/$*&!=()<>-.0189eEKim"#.to_vec());
    let byte = prop_oneof![any::<u8>(), telling];
    prop_oneof![
        4 => (place, byte.clone()).prop_map(|(p, b)| Damage::Set(p, b)),
        2 => (place, prop::collection::vec(byte, 1..8)).prop_map(|(p, b)| Damage::Insert(p, b)),
        2 => (place, 1..20_usize).prop_map(|(p, n)| Damage::Remove(p, n)),
        2 => (place, 1..40_usize, 1..30_usize).prop_map(|(p, n, t)| Damage::Repeat(p, n, t)),
        1 => place.prop_map(Damage::Truncate),
    ]
}

fn inputs(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let damaged = (prop::sample::select(seeds), prop::collection::vec(damage(), 0..4)).prop_map(
        |(mut bytes, damages)| {
            damages.iter().for_each(|d| d.apply(&mut bytes));
            bytes
        },
    );
    prop_oneof![1 => prop::collection::vec(any::<u8>(), 0..200), 6 => damaged]
}

macro_rules! entrances {
    ($($target:ident $cases:literal;)*) => {$(
        mod $target {
            use super::*;

            #[test]
            fn valid_inputs_are_taken() {
                seeds::$target().iter().for_each(|seed| fuzzing::$target(seed));
            }

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(cases($cases)))]

                #[test]
                fn no_input_breaks_it(input in inputs(seeds::$target())) {
                    fuzzing::$target(&input);
                }
            }
        }
    )*

    /// Run it once before fuzzing.
    #[test]
    #[ignore = "writes fuzz/corpus"]
    fn write_the_seeds_for_the_fuzzers() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (target, seeds) in [$((stringify!($target), seeds::$target())),*] {
            std::fs::create_dir_all(corpus.join(target)).unwrap();
            for (n, seed) in seeds.iter().enumerate() {
                std::fs::write(corpus.join(target).join(format!("seed-{n}")), seed).unwrap();
            }
        }
    }};
}

/// `PROPTEST_CASES` wins over our own number.
fn cases(ours: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(ours)
}

entrances! {
    wire_frame 3000;
    join 1000;
    join_answer 2000;
    body 3000;
    quantity 10_000;
    selector 5000;
    patch 3000;
}
