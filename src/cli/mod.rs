//! The command line. Speaks only HTTP to a cluster.
