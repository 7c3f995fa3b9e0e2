//! HTTP API and metrics page.
//!
//! [`serve`] answers on one listener for whatever implements [`Control`]: `node` in production, a fake in tests. What must hold:
//!
//! * Nobody who cannot be trusted changes anything: a command needs the token, or without one a connection from this machine;
//!   and it never comes from a web page that a browser on this machine has open (module `guard`).
//! * Whatever a peer sends, and however slowly: a bounded number of connections, one request each, bounded in bytes and time.
//! * A node that hangs is seen to hang: each answer rests on a status that was asked for now, and `/livez` with it.
//!
//! Reading order: `control` (what is served), `health` (what a status means to those who only want yes or no), `metrics` (the
//! page), `guard` (who may), `routes` (the paths), `server` (sockets and limits).
//!
//! ```text
//! GET  /status                           Status as JSON
//! GET  /metrics                          Prometheus text format
//! GET  /livez  /readyz  /readyz?role=primary|replica    200 or 503
//! GET  /stop-safe                        200 or 409
//! GET  /cluster/record                   StoredRecord as JSON
//! POST /cluster/<command>                CommandResult
//! anything but success                   ApiError
//! ```

mod control;
mod guard;
mod health;
mod metrics;
mod routes;
mod server;
#[cfg(test)]
mod testing;

pub use control::{CommandError, CommandErrorKind, CommandFuture, Control};
pub use health::{Wanted, ready, stop_safe};
pub use metrics::metrics;
pub use server::{Options, serve};
