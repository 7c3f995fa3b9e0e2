//! Placeholder, replaced by its first content.
