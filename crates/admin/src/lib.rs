//! HTTP API and metrics page.
