//! Huge pages among requests and limits.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::model::{
    fault::{Faults, Path},
    huge_pages, quantity,
};

/// Amounts are whole pages, and pages have a size.
pub(super) fn divisible(list: &BTreeMap<String, Quantity>, at: &Path<'_>, faults: &mut Faults) {
    for (name, amount) in list.iter().filter(|(name, _)| name.starts_with(huge_pages::PREFIX)) {
        // What is no amount at all is told elsewhere.
        let Ok(milli) = quantity::parse_milli(&amount.0) else { continue };
        let page = huge_pages::page_bytes(name).map(i128::from);
        if page.is_none_or(|bytes| milli % (bytes * 1000) != 0) {
            let detail = format!("{} is not positive integer multiple of {name}", amount.0);
            faults.invalid(&at.key(name), &amount.0, &detail);
        }
    }
}

/// Who asks for huge pages asks for cpu or memory as well: else its pod would have no quality of service.
pub(super) fn accompanied(
    limits: &BTreeMap<String, Quantity>,
    requests: &BTreeMap<String, Quantity>,
) -> bool {
    let any = |which: fn(&str) -> bool| limits.keys().chain(requests.keys()).any(|name| which(name));
    !any(|name| name.starts_with(huge_pages::PREFIX)) || any(|name| matches!(name, "cpu" | "memory"))
}
