//! Huge pages as a resource: `hugepages-2Mi`.
//!
//! Owns: which names mean how large a page, and the few sizes that machines of ours have. Pure.

use super::quantity;

/// What the resources' names begin with.
pub const PREFIX: &str = "hugepages-";

/// The sizes that are counted one by one: those of amd64 and of arm64 with its usual pages.
pub const SIZES: [(&str, i64); 4] = [
    ("hugepages-64Ki", 64 << 10),
    ("hugepages-2Mi", 2 << 20),
    ("hugepages-32Mi", 32 << 20),
    ("hugepages-1Gi", 1 << 30),
];

/// The bytes of a page that a resource's name speaks of: a positive whole number, or it is none.
pub fn page_bytes(name: &str) -> Option<i64> {
    size(name.strip_prefix(PREFIX)?)
}

/// The bytes that a page's size says, `2Mi`.
pub fn size(text: &str) -> Option<i64> {
    let milli = quantity::parse_milli(text).ok().filter(|milli| *milli > 0 && milli % 1000 == 0)?;
    i64::try_from(milli / 1000).ok()
}

/// The resource of pages of so many bytes, in the name that Kubernetes gives it.
pub fn name(page_bytes: i64) -> String {
    let known = SIZES.iter().find(|(_, bytes)| *bytes == page_bytes).map(|(name, _)| (*name).to_owned());
    known.unwrap_or_else(|| {
        let kibi = format!("{}Ki", page_bytes / 1024);
        format!("{PREFIX}{}", quantity::canonical(&kibi))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_size_of_a_page() {
        for (text, bytes) in [
            ("hugepages-2Mi", Some(2 << 20)),
            ("hugepages-2048Ki", Some(2 << 20)),
            ("hugepages-1Gi", Some(1 << 30)),
            ("hugepages-1500m", None),
            ("hugepages-0", None),
            ("hugepages--2Mi", None),
            ("hugepages-", None),
            ("memory", None),
        ] {
            assert_eq!(page_bytes(text), bytes, "{text}");
        }
        assert_eq!([name(2 << 20), name(16 << 30)], ["hugepages-2Mi", "hugepages-16Gi"]);
    }
}
