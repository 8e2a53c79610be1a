//! One exchange with sq: one connection, one request that is complete before its first byte goes out, one answer.
//!
//! sq closes after each answer without saying so; a pooled client loses up to 45 % of its POSTs that way (sq-facts).

use std::{io, net::Ipv4Addr, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::headers::passes_back;

/// Until sq must have answered: its own time-outs are 32 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);

/// Until a loopback connection must stand. A full backlog of sq (128) costs a SYN retry after 1 s, then after 2 s more.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest head of an answer, bytes. sq writes about 80.
const MAX_HEAD: usize = 16 * 1024;

/// Most header fields of an answer. sq writes two.
const MAX_FIELDS: usize = 32;

/// Answers up to this length are read to their end at once, which frees the tenant's lane before a slow client has read its copy.
const READ_AT_ONCE: u64 = 64 * 1024;

/// Bodies up to this length travel in the same write as the head.
const WRITE_AT_ONCE: usize = 16 * 1024;

/// A request as sq will read it.
pub(crate) struct Exchange {
    pub(crate) port: u16,
    pub(crate) head: Vec<u8>,
    pub(crate) body: Vec<Bytes>,
}

impl Exchange {
    /// Length of its body, bytes.
    pub(crate) fn length(&self) -> u64 {
        self.body.iter().map(|piece| piece.len() as u64).sum()
    }
}

/// What sq said.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// What has been read of the body.
    pub(crate) first: Bytes,
    /// What is still to come, if anything.
    pub(crate) rest: Option<Rest>,
}

impl Answer {
    /// Length of its body, bytes.
    pub(crate) fn length(&self) -> u64 {
        self.first.len() as u64 + self.rest.as_ref().map_or(0, |rest| rest.bytes)
    }
}

/// The unread end of a body.
pub(crate) struct Rest {
    pub(crate) stream: TcpStream,
    pub(crate) bytes: u64,
}

/// Why there is no answer to pass on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody listens: nothing went out, so the request may be sent elsewhere.
    Refused,
    /// 401 to our key: another instance. It looked at the key before it did anything, so the request may be sent elsewhere.
    WrongInstance,
    /// Something went out and no whole answer came back: the outcome is unknown, never retry.
    Broken,
    /// The same, after waiting.
    TimedOut,
}

/// Sends the request and reads the answer's head, and its body where it is short.
pub(crate) async fn exchange(request: &Exchange) -> Result<Answer, Failure> {
    exchange_on(connect(request.port).await?, request).await
}

/// A connection to whoever listens on `port`.
pub(crate) async fn connect(port: u16) -> Result<TcpStream, Failure> {
    match timeout(CONNECT_TIMEOUT, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(_)) | Err(_) => Err(Failure::Refused),
    }
}

/// The same on a connection that stands.
pub(crate) async fn exchange_on(stream: TcpStream, request: &Exchange) -> Result<Answer, Failure> {
    timeout(ANSWER_TIMEOUT, talk(stream, request)).await.map_err(|_| Failure::TimedOut)?
}

async fn talk(mut stream: TcpStream, request: &Exchange) -> Result<Answer, Failure> {
    // sq answers 503 (its 512 connections are taken) without reading: a failed write may still have an answer to read.
    let written = write_request(&mut stream, request).await;
    let mut buffer = BytesMut::with_capacity(4 * 1024);
    let head = loop {
        match read_some(&mut stream, &mut buffer).await {
            Ok(0) => return Err(Failure::Broken),
            Ok(_) => {}
            Err(_) => return Err(Failure::Broken),
        }
        match parse(&buffer) {
            Parsed::Whole(head) => break head,
            Parsed::Partial if buffer.len() <= MAX_HEAD => {}
            Parsed::Partial | Parsed::Bad => return Err(Failure::Broken),
        }
    };
    if head.status == StatusCode::UNAUTHORIZED {
        return Err(Failure::WrongInstance);
    }
    if written.is_err() && head.status.is_success() {
        return Err(Failure::Broken);
    }
    buffer.advance(head.bytes);
    finish(stream, buffer, head).await
}

async fn finish(mut stream: TcpStream, mut buffer: BytesMut, head: Head) -> Result<Answer, Failure> {
    if head.length <= READ_AT_ONCE {
        while (buffer.len() as u64) < head.length {
            match read_some(&mut stream, &mut buffer).await {
                Ok(0) | Err(_) => return Err(Failure::Broken),
                Ok(_) => {}
            }
        }
    }
    // Whatever stands beyond the announced length is nobody's.
    buffer.truncate(usize::try_from(head.length).unwrap_or(usize::MAX));
    let bytes = head.length - buffer.len() as u64;
    let rest = (bytes > 0).then_some(Rest { stream, bytes });
    Ok(Answer { status: head.status, headers: head.headers, first: buffer.freeze(), rest })
}

async fn write_request(stream: &mut TcpStream, request: &Exchange) -> io::Result<()> {
    let length: usize = request.body.iter().map(Bytes::len).sum();
    if length <= WRITE_AT_ONCE {
        if length == 0 {
            return stream.write_all(&request.head).await;
        }
        let mut whole = Vec::with_capacity(request.head.len() + length);
        whole.extend_from_slice(&request.head);
        request.body.iter().for_each(|piece| whole.extend_from_slice(piece));
        return stream.write_all(&whole).await;
    }
    // Several writes must not wait for each other's acknowledgement; a single one never does.
    stream.set_nodelay(true)?;
    stream.write_all(&request.head).await?;
    for piece in &request.body {
        stream.write_all(piece).await?;
    }
    Ok(())
}

async fn read_some(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<usize> {
    buffer.reserve(4 * 1024);
    stream.read_buf(buffer).await
}

struct Head {
    status: StatusCode,
    headers: HeaderMap,
    /// Of the body.
    length: u64,
    /// Of the head itself.
    bytes: usize,
}

enum Parsed {
    Whole(Head),
    Partial,
    Bad,
}

/// Reads an answer's head. sq always states a length; an answer that does not, or that is chunked, is not sq's.
fn parse(bytes: &[u8]) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Bad,
    };
    head_of(&response, length).map_or(Parsed::Bad, Parsed::Whole)
}

fn head_of(response: &httparse::Response<'_, '_>, bytes: usize) -> Option<Head> {
    let status = StatusCode::from_u16(response.code?).ok().filter(|status| !status.is_informational())?;
    let mut headers = HeaderMap::with_capacity(8);
    let mut length = None;
    for field in response.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            let stated = std::str::from_utf8(field.value).ok()?.trim().parse::<u64>().ok()?;
            if length.replace(stated).is_some_and(|before| before != stated) {
                return None;
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            return None;
        } else if passes_back(field.name) {
            let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
            headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
        }
    }
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = if bodiless { Some(0) } else { length };
    Some(Head { status, headers, length: length?, bytes })
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::net::TcpListener;

    use super::*;

    /// A server for one connection that reads `expect` bytes, then writes `answer` and closes.
    async fn sq(expect: usize, answer: &'static [u8]) -> (u16, impl Future<Output = Vec<u8>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = vec![0; expect];
            stream.read_exact(&mut seen).await.unwrap();
            stream.write_all(answer).await.unwrap();
            seen
        });
        (port, async move { served.await.unwrap() })
    }

    async fn ask(answer: &'static [u8]) -> Result<Answer, Failure> {
        let (port, _served) = sq(4, answer).await;
        exchange(&Exchange { port, head: b"HEAD".to_vec(), body: Vec::new() }).await
    }

    #[tokio::test]
    async fn an_answer_comes_back_without_the_headers_of_one_hop() {
        let answer =
            ask(b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\nETag: x\r\nContent-Length: 2\r\n\r\nhi+junk")
                .await;
        let answer = answer.unwrap();
        assert_eq!((answer.status, &answer.first[..], answer.rest.is_none()), (StatusCode::OK, &b"hi"[..], true));
        assert_eq!(answer.headers.len(), 1);
        assert_eq!(answer.headers["etag"], "x");
    }

    #[tokio::test]
    async fn what_is_not_a_whole_answer_is_broken() {
        for answer in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\nContent-Le",
            b"HTTP/1.1 200 OK\r\n\r\nno length",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"SSH-2.0-OpenSSH\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
        ] {
            assert_eq!(ask(answer).await.err(), Some(Failure::Broken), "{}", String::from_utf8_lossy(answer));
        }
    }

    #[tokio::test]
    async fn another_instances_401_is_never_an_answer() {
        assert_eq!(ask(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await.err(), Some(Failure::WrongInstance));
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_refused() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let refused = exchange(&Exchange { port, head: b"HEAD".to_vec(), body: Vec::new() }).await;
        assert_eq!(refused.err(), Some(Failure::Refused));
    }

    #[tokio::test]
    async fn head_and_body_arrive_as_one_stream_whatever_their_size() {
        for size in [0, 1, WRITE_AT_ONCE, WRITE_AT_ONCE + 1, 300_000] {
            let (port, served) = sq(4 + 2 * size, b"HTTP/1.1 204 No Content\r\n\r\n").await;
            let body = vec![Bytes::from(vec![b'a'; size]), Bytes::from(vec![b'b'; size])];
            let answer = exchange(&Exchange { port, head: b"HEAD".to_vec(), body }).await.unwrap();
            assert_eq!(answer.status, StatusCode::NO_CONTENT);
            let seen = served.await;
            assert!(
                seen.starts_with(b"HEAD") && seen[4..4 + size].iter().all(|b| *b == b'a') && seen[4 + size..].iter().all(|b| *b == b'b')
            );
        }
    }
}
