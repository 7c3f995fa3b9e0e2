//! Marshalled properties.
