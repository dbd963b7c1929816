//! Kubernetes' REST API over actix-web. Speaks only messages to actors.
