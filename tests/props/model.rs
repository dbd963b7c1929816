//! Texts and patches of the API.
