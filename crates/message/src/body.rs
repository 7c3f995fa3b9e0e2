//! Conversions between client bodies and stored content.
