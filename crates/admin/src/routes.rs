//! The paths.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Extension, FromRequest, Path, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use kahawai_admin_api::{ApiError, ClusterCommand, CommandResult, ParseCommandError, Status};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::control::{CommandError, CommandErrorKind, Control};
use crate::guard::{Refusal, may_command};
use crate::health::{self, Wanted};
use crate::metrics::metrics;
use crate::server::Options;

/// What a request's body may be.
const BODY_BYTES_MAX: usize = 64 << 10;
/// The same where a cluster record is in it: 256 KiB at most, twice as long as a text in JSON.
const RECORD_BODY_BYTES_MAX: usize = (512 << 10) + BODY_BYTES_MAX;
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// What all handlers share.
#[derive(Clone)]
struct Api {
    control: Arc<dyn Control>,
    options: Arc<Options>,
    /// Asking takes its turn: a node that hangs costs one thread, not one for each request.
    asking: Turn,
    /// Asking for what is on the disk has a turn of its own, which keeps nobody from hearing how the node is.
    recalling: Turn,
}

type Turn = Arc<tokio::sync::Mutex<()>>;

impl Api {
    /// How the node is now.
    async fn status(&self) -> Result<Status, Refusal> {
        self.ask(&self.asking, |control| control.status()).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        turn: &Turn,
        question: fn(&dyn Control) -> T,
    ) -> Result<T, Refusal> {
        let ask = async {
            let turn = Arc::clone(turn).lock_owned().await;
            let control = Arc::clone(&self.control);
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                question(&*control)
            })
            .await
        };
        let hangs = |error: String| {
            let advice = "look at the node's log; if it stays so, restart the node".to_owned();
            (StatusCode::SERVICE_UNAVAILABLE, ApiError { error, advice })
        };
        match timeout(self.options.status_timeout, ask).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(hangs(format!("the node cannot say how it is: {error}"))),
            Err(_) => {
                let seconds = self.options.status_timeout.as_secs_f64();
                Err(hangs(format!("the node hangs: it has not said within {seconds} s how it is")))
            }
        }
    }
}

/// The service for all connections.
pub(crate) fn router(control: Arc<dyn Control>, options: Arc<Options>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics_page))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/stop-safe", get(stop_safe))
        .route("/cluster/record", get(stored_record))
        .route(
            "/cluster/restore-record",
            post(restore_record).layer(DefaultBodyLimit::max(RECORD_BODY_BYTES_MAX)),
        )
        .route("/cluster/{command}", post(command))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Api { control, options, asking: Turn::default(), recalling: Turn::default() })
}

async fn status(State(api): State<Api>) -> Response {
    match api.status().await {
        Ok(status) => fresh(Json(status).into_response()),
        Err(refusal) => refuse(refusal),
    }
}

async fn metrics_page(State(api): State<Api>) -> Response {
    match api.status().await {
        Ok(status) => fresh(([(CONTENT_TYPE, METRICS_TYPE)], metrics(&status)).into_response()),
        Err(refusal) => refuse(refusal),
    }
}

async fn livez(State(api): State<Api>) -> Response {
    match api.status().await {
        Ok(status) => yes(format!("alive, {}", status.role)),
        Err(refusal) => refuse(refusal),
    }
}

async fn readyz(
    State(api): State<Api>,
    query: Result<Query<HashMap<String, String>>, QueryRejection>,
) -> Response {
    let role = match &query {
        Ok(Query(query)) => query.get("role").map(String::as_str),
        Err(_) => Some(""),
    };
    let wanted = match role {
        None => Wanted::Any,
        Some("primary") => Wanted::Primary,
        Some("replica") => Wanted::Replica,
        Some(_) => {
            let advice = "ask for /readyz, /readyz?role=primary or /readyz?role=replica";
            return refuse(refusal(StatusCode::BAD_REQUEST, "this role is none", advice));
        }
    };
    match api.status().await.map(|status| health::ready(&status, wanted)) {
        Ok(Ok(text)) => yes(text),
        Ok(Err(text)) => refuse(refusal(StatusCode::SERVICE_UNAVAILABLE, &text, "")),
        Err(refusal) => refuse(refusal),
    }
}

async fn stop_safe(State(api): State<Api>) -> Response {
    match api.status().await.map(|status| health::stop_safe(&status)) {
        Ok(Ok(text)) => yes(text),
        Ok(Err(text)) => {
            let advice = "wait until more replicas are in sync (kahawai cluster status), then ask again";
            refuse(refusal(StatusCode::CONFLICT, &text, advice))
        }
        Err(refusal) => refuse(refusal),
    }
}

async fn stored_record(State(api): State<Api>) -> Response {
    match api.ask(&api.recalling, |control| control.stored_record()).await {
        Ok(Ok(stored)) => fresh(Json(stored).into_response()),
        Ok(Err(error)) => refuse(not_done(error)),
        Err(refusal) => refuse(refusal),
    }
}

async fn command(
    State(api): State<Api>,
    Extension(Peer(peer)): Extension<Peer>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    take(&api, peer, &name, BODY_BYTES_MAX, request).await
}

async fn restore_record(
    State(api): State<Api>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
) -> Response {
    take(&api, peer, ClusterCommand::RESTORE_RECORD, RECORD_BODY_BYTES_MAX, request).await
}

/// Takes a command whose body is so long at most.
async fn take(api: &Api, peer: SocketAddr, name: &str, body_bytes_max: usize, request: Request) -> Response {
    if let Err(refused) = may_command(&api.options, peer, request.uri(), request.headers()) {
        warn!(%peer, command = name, reason = refused.1.error, "command refused");
        return refuse(refused);
    }
    let body = match timeout(api.options.request_timeout, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => body,
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let error = format!("the body is longer than {body_bytes_max} bytes");
            return refuse(refusal(rejection.status(), &error, ""));
        }
        Ok(Err(rejection)) => return refuse(refusal(rejection.status(), "the body broke off", "")),
        Err(_) => return refuse(refusal(StatusCode::REQUEST_TIMEOUT, "the body took too long to come", "")),
    };
    let parsed = match ClusterCommand::parse(name, &body) {
        Ok(parsed) => parsed,
        Err(ParseCommandError::Unknown) => {
            let advice = format!("there are {}", ClusterCommand::NAMES.join(", "));
            return refuse(refusal(StatusCode::NOT_FOUND, "there is no such command", &advice));
        }
        Err(ParseCommandError::Fields(error)) => {
            let error = format!("the fields of {name} are wrong: {error}");
            return refuse(refusal(StatusCode::BAD_REQUEST, &error, ""));
        }
    };
    info!(%peer, command = ?parsed, "command");
    // A task of its own: whoever asked may go, what was begun comes to its end.
    let running = tokio::spawn(api.control.command(parsed));
    match timeout(api.options.command_timeout, running).await {
        Ok(Ok(Ok(text))) => {
            info!(command = name, result = text, "command done");
            yes(text)
        }
        Ok(Ok(Err(error))) => {
            warn!(command = name, %error, "command not done");
            refuse(not_done(error))
        }
        Ok(Err(error)) => {
            warn!(command = name, %error, "command broke off");
            let error = format!("{name} broke off: {error}");
            refuse(refusal(StatusCode::INTERNAL_SERVER_ERROR, &error, "look at the node's log"))
        }
        Err(_) => {
            let seconds = api.options.command_timeout.as_secs_f64();
            warn!(command = name, seconds, "command still under way, its answer will not be heard");
            let error = format!("{name} is not done after {seconds} s and goes on");
            refuse(refusal(
                StatusCode::GATEWAY_TIMEOUT,
                &error,
                "see what comes of it: kahawai cluster status",
            ))
        }
    }
}

fn not_done(error: CommandError) -> Refusal {
    let status = match error.kind {
        CommandErrorKind::Invalid => StatusCode::BAD_REQUEST,
        CommandErrorKind::NotFound => StatusCode::NOT_FOUND,
        CommandErrorKind::Refused => StatusCode::CONFLICT,
        CommandErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        CommandErrorKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, error.into())
}

async fn unknown_path() -> Response {
    let advice =
        "there are /status, /metrics, /livez, /readyz, /stop-safe, /cluster/record and /cluster/<command>";
    refuse(refusal(StatusCode::NOT_FOUND, "there is nothing under this path", advice))
}

async fn wrong_method() -> Response {
    let advice = "commands under /cluster/ are POSTs; /cluster/record and everything else is a GET";
    refuse(refusal(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method", advice))
}

fn refusal(status: StatusCode, error: &str, advice: &str) -> Refusal {
    (status, ApiError { error: error.to_owned(), advice: advice.to_owned() })
}

fn refuse((status, error): Refusal) -> Response {
    fresh((status, Json(error)).into_response())
}

fn yes(text: String) -> Response {
    fresh(Json(CommandResult { ok: true, text }).into_response())
}

/// Neither kept by anybody on the way nor taken for something else.
fn fresh(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
