//! The API's server: HTTP/1.1 with JSON on a Unix socket that only the node's administrator may open.

use crate::core::SharedCore;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// The socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}: {error}; check that the run directory exists and may be written", path.display())]
pub struct ListenError {
    path: PathBuf,
    error: io::Error,
}

/// The listening socket, removed when it is dropped.
pub struct ApiSocket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl ApiSocket {
    /// Listens on `path`. A socket that is there already is a leftover: the caller holds the tables' writer
    /// lock, so no other instance lives.
    pub fn bind(path: &Path) -> Result<ApiSocket, ListenError> {
        let bind = || {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let listener = UnixListener::bind(path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
            Ok(listener)
        };
        let listener = bind().map_err(|error| ListenError { path: path.to_owned(), error })?;
        Ok(ApiSocket { path: path.to_owned(), listener: Some(listener) })
    }

    /// Answers until the task is dropped.
    pub async fn serve(mut self, core: SharedCore) -> io::Result<()> {
        let Some(listener) = self.listener.take() else { return Ok(()) };
        axum::serve(listener, router(core)).await
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn router(core: SharedCore) -> Router {
    Router::new()
        .route("/status", get(|State(core): State<SharedCore>| async move { Json(core.lock().status()) }))
        .route("/routes", get(|State(core): State<SharedCore>| async move { Json(core.lock().routes()) }))
        .route("/services", get(|State(core): State<SharedCore>| async move { Json(core.lock().services()) }))
        .route(
            "/endpoints",
            get(|State(core): State<SharedCore>| async move { Json(core.lock().endpoints()) }),
        )
        .route(
            "/neighbours",
            get(|State(core): State<SharedCore>| async move { Json(core.lock().neighbours()) }),
        )
        .route("/tunnels", get(|State(core): State<SharedCore>| async move { Json(core.lock().tunnels()) }))
        .route("/ports", get(|State(core): State<SharedCore>| async move { Json(core.lock().ports()) }))
        .route("/counters", get(|State(core): State<SharedCore>| async move { Json(core.lock().counters()) }))
        .fallback(|| async { (StatusCode::NOT_FOUND, "no such page; see docs/control.md") })
        .with_state(core)
}
