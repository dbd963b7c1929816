//! QUIC between machines: identity, endpoint, link, codec, byte streams.
