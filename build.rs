//! How the program is linked: at a fixed address.
//!
//! As a static position-independent executable it would relocate itself at each start, which dirties 2 MB and takes
//! over a millisecond; it is started twice for each pod (shim, built-in image). See `docs/adr/0006-fixed-address.md`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |variable: &str, value: &str| {
        std::env::var(variable).is_ok_and(|values| values.split(',').any(|v| v == value))
    };
    // Elsewhere rustc chooses start files itself that do not go with these.
    if is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && is("CARGO_CFG_TARGET_FEATURE", "crt-static")
    {
        println!("cargo::rustc-link-arg-bins=-no-pie");
        println!("cargo::rustc-link-arg-bins=-static");
    }
}
