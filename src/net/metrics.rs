//! The room's metrics: names, units and help in one place. Labels come from closed sets, never from ids.

use std::sync::Once;

use metrics::{Unit, describe_counter};

/// Frames that did not decode and were skipped: a newer peer's messages, or a defect.
pub(crate) const FRAMES_SKIPPED: &str = "troupe_link_frames_skipped_total";
/// Queued messages replaced by a newer one under the same key.
pub(crate) const OUTBOX_REPLACED: &str = "troupe_link_outbox_replaced_total";
/// Messages refused because an outbox was full.
pub(crate) const OUTBOX_REFUSED: &str = "troupe_link_outbox_refused_total";
/// Links that came about.
pub(crate) const LINKS_OPENED: &str = "troupe_links_opened_total";
/// Handshakes that failed or were refused: no, foreign or wrong certificate, no time, too many at once.
pub(crate) const HANDSHAKES_FAILED: &str = "troupe_link_handshakes_failed_total";
/// Relays of host ports that had no room.
pub(crate) const HOST_PORTS_FULL: &str = "troupe_host_ports_full_total";

/// Tells the installed recorder what the metrics mean, once a process: when the first listener is bound.
pub(crate) fn describe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(describe_all);
}

fn describe_all() {
    for (name, help) in [
        (FRAMES_SKIPPED, "Frames that could not be decoded and were skipped"),
        (OUTBOX_REPLACED, "Queued messages replaced by newer ones before they were sent"),
        (OUTBOX_REFUSED, "Messages refused because a link's outbox was full"),
        (LINKS_OPENED, "Links established"),
        (HANDSHAKES_FAILED, "Incoming handshakes that failed or were refused"),
        (
            HOST_PORTS_FULL,
            "Times host ports had no room: a connection waited or was given up for one, a UDP client was given up, a datagram was dropped",
        ),
    ] {
        describe_counter!(name, Unit::Count, help);
    }
}
