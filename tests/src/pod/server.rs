//! The server in a pod: `/` answers with the pod's name, `/client` with that and the address from which it was asked,
//! `/bytes/N` with N bytes of the pattern.

use super::pattern;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::{TcpListener, UdpSocket};

/// Largest piece of a body in bytes.
const CHUNK_BYTES: u64 = 64 * 1024;
/// Largest body that `/bytes/N` gives.
const MAX_BYTES: u64 = 1 << 40;

/// A body of `end - position` bytes of the pattern, made as it is sent.
struct PatternBody {
    position: u64,
    end: u64,
}

impl Body for PatternBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let len = CHUNK_BYTES.min(self.end - self.position);
        if len == 0 {
            return Poll::Ready(None);
        }
        let mut chunk = vec![0; len as usize];
        pattern::fill(self.position, &mut chunk);
        self.position += len;
        Poll::Ready(Some(Ok(Frame::data(chunk.into()))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.position)
    }
}

fn text(status: StatusCode, text: String) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
    *response.status_mut() = status;
    response
}

fn answer(
    request: &Request<Incoming>,
    name: &str,
    client: SocketAddr,
) -> Response<BoxBody<Bytes, Infallible>> {
    let path = request.uri().path();
    if path == "/" {
        return text(StatusCode::OK, name.to_owned());
    }
    if path == "/client" {
        return text(StatusCode::OK, format!("{name} {}", client.ip().to_canonical()));
    }
    match path.strip_prefix("/bytes/").map(str::parse::<u64>) {
        Some(Ok(end)) if end <= MAX_BYTES => Response::new(PatternBody { position: 0, end }.boxed()),
        Some(_) => text(StatusCode::BAD_REQUEST, format!("ask for /bytes/N with N up to {MAX_BYTES}\n")),
        None => text(StatusCode::NOT_FOUND, "there is /, /client and /bytes/N\n".to_owned()),
    }
}

/// Serves HTTP over TCP and echoes UDP on `listen` until the process ends. Prints `listening on …` once
/// both sockets are open.
pub async fn serve(listen: SocketAddr, name: String) -> io::Result<()> {
    let name: Arc<str> = name.into();
    let tcp = TcpListener::bind(listen).await?;
    let udp = UdpSocket::bind(listen).await?;
    println!("listening on {listen}");
    tokio::spawn(super::udp::echo(udp));
    loop {
        let (stream, client) = match tcp.accept().await {
            Ok(accepted) => accepted,
            // A connection that was reset before it was accepted is no reason to stop serving.
            Err(error) => {
                eprintln!("accept: {error}");
                continue;
            }
        };
        stream.set_nodelay(true)?;
        let name = name.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request, &name, client);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            if let Err(error) = connection.serve_connection(TokioIo::new(stream), service).await {
                eprintln!("connection: {error}");
            }
        });
    }
}
