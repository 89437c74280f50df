//! The API's client, which the command line and the tests use.

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// Name of the socket in the run directory.
pub const SOCKET: &str = "control.sock";
/// An answer that takes longer does not come.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The API gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("fairway-control is not running here: {} {error}; start it, or set --run-dir", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What connecting to it said.
        error: io::Error,
    },
    /// The socket may not be opened.
    #[error("{} may not be opened: {error}; run as root", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
        /// What connecting to it said.
        error: io::Error,
    },
    /// The connection broke.
    #[error("fairway-control did not answer {page}: {error}; look at its log")]
    Http {
        /// What was asked for.
        page: String,
        /// What happened.
        error: hyper::Error,
    },
    /// No answer in time.
    #[error("fairway-control did not answer {page} within {} s; look at its log", TIMEOUT.as_secs())]
    Timeout {
        /// What was asked for.
        page: String,
    },
    /// An answer other than success.
    #[error(
        "fairway-control answered {page} with {status}; use the same version of fairway and fairway-control"
    )]
    Status {
        /// What was asked for.
        page: String,
        /// The answer's status.
        status: u16,
    },
    /// An answer of another shape.
    #[error(
        "the answer to {page} was not understood: {error}; use the same version of fairway and fairway-control"
    )]
    Json {
        /// What was asked for.
        page: String,
        /// What did not fit.
        error: serde_json::Error,
    },
    /// The client itself could not start.
    #[error("cannot start the client: {0}")]
    Runtime(io::Error),
}

/// Asks the control process of `run_dir` for a page such as `/status`.
pub async fn get<T: DeserializeOwned>(run_dir: &Path, page: &str) -> Result<T, ClientError> {
    let body = tokio::time::timeout(TIMEOUT, fetch(run_dir, page))
        .await
        .map_err(|_| ClientError::Timeout { page: page.to_owned() })??;
    serde_json::from_slice(&body).map_err(|error| ClientError::Json { page: page.to_owned(), error })
}

/// As [`get`], without a runtime around it.
pub fn get_blocking<T: DeserializeOwned>(run_dir: &Path, page: &str) -> Result<T, ClientError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Runtime)?;
    runtime.block_on(get(run_dir, page))
}

async fn fetch(run_dir: &Path, page: &str) -> Result<Bytes, ClientError> {
    let path = run_dir.join(SOCKET);
    let stream = UnixStream::connect(&path).await.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => ClientError::Forbidden { path, error },
        _ => ClientError::NotRunning { path, error },
    })?;
    let http = |error| ClientError::Http { page: page.to_owned(), error };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let exchange = async {
        let mut request = hyper::Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = page.parse().unwrap_or_default();
        request.headers_mut().insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("fairway"));
        let response = sender.send_request(request).await.map_err(http)?;
        if !response.status().is_success() {
            return Err(ClientError::Status { page: page.to_owned(), status: response.status().as_u16() });
        }
        Ok(response.into_body().collect().await.map_err(http)?.to_bytes())
    };
    // The connection must be driven while its answer is awaited; the answer ends first.
    tokio::select! {
        biased;
        result = exchange => result,
        result = async { match connection.await { Ok(()) => std::future::pending().await, Err(e) => e } } => {
            Err(http(result))
        }
    }
}
