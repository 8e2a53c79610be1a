//! A connection of HTTP/1.1: what the gate lets through must be what hyper takes.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::{Builder, Runtime},
};

use crate::proxy::{
    connection::State,
    gate::Gate,
    head::{self, MAX_HEAD, Search},
};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().unwrap_or_else(|error| panic!("{error}"));
}

/// These bytes, `step` at a time, as a connection: hyper may refuse nothing by itself, and sees nothing that it could take in two ways.
pub fn connection(bytes: &[u8], step: usize) {
    let state = State::new(false, Arc::default());
    let said = Arc::new(Mutex::new(Vec::new()));
    let wire = Wire { bytes: bytes.to_vec(), at: 0, step: step.max(1), said: Arc::clone(&said) };
    let gate = Gate::new(wire, Arc::clone(&state));
    let for_service = Arc::clone(&state);
    let service = service_fn(move |request: Request<Incoming>| {
        let refused = for_service.refused().is_some();
        async move {
            if refused {
                assert!(request.headers().len() == 1, "a refused request stands for itself");
            } else {
                let lines = |name| request.headers().get_all(name).iter().count();
                assert!(lines("content-length") <= 1 && lines("transfer-encoding") <= 1 && lines("host") <= 1);
            }
            let _ = request.into_body().collect().await;
            let mut response = Response::new(Empty::<Bytes>::new());
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            Ok::<_, Infallible>(response)
        }
    });
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let mut builder = http1::Builder::new();
            builder.header_read_timeout(None).max_header_size(MAX_HEAD).half_close(false);
            let _ = builder.serve_connection(TokioIo::new(gate), service).await;
        });
    });
    let said = said.lock().unwrap_or_else(|error| panic!("{error}"));
    let said = String::from_utf8_lossy(&said);
    for (at, _) in said.match_indices("HTTP/1.1 ") {
        let status = said.get(at + 9..at + 12).unwrap_or_default();
        assert!(status == "418" || status == "100", "hyper answered by itself: {said}");
    }
}

/// A head alone: its end is found at the same place whole and in pieces, and it is judged.
pub fn alone(bytes: &[u8]) {
    let mut search = Search::new();
    let Ok(Some(end)) = search.end(bytes) else { return };
    let mut slowly = Search::new();
    let found = (0..=end).find_map(|so_far| slowly.end(&bytes[..so_far]).unwrap_or_else(|error| panic!("only in pieces: {error}")));
    assert_eq!(found, Some(end));
    let _ = head::check(&bytes[..end]);
}

/// Both ends of a connection in memory.
struct Wire {
    bytes: Vec<u8>,
    at: usize,
    step: usize,
    said: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let length = self.step.min(buffer.remaining()).min(self.bytes.len() - self.at);
        buffer.put_slice(&self.bytes[self.at..self.at + length]);
        self.at += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.said.lock().unwrap_or_else(|error| panic!("{error}")).extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
