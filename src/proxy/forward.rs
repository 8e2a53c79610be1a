//! One exchange with sq: one connection, one request that is complete before its first byte goes out, one answer.
//!
//! sq closes after each answer without saying so; a pooled client loses up to 45 % of its POSTs that way (sq-facts).

use std::{borrow::Cow, future::poll_fn, io, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::time::timeout;

use super::{
    headers::passes_back,
    upstream::{Refused, Upstream},
};

/// Until sq must have answered: its own time-outs are 32 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);

/// Longest head of an answer, bytes. sq writes about 80.
const MAX_HEAD: usize = 16 * 1024;

/// Most header fields of an answer. sq writes two.
const MAX_FIELDS: usize = 32;

/// Answers up to this length are read to their end at once, which frees the tenant's lane before a slow client has read its copy.
const READ_AT_ONCE: u64 = 64 * 1024;

/// Bodies up to this length travel in the same write as the head.
const WRITE_AT_ONCE: usize = 16 * 1024;

/// Least room for a read of an answer, bytes: most answers of sq are shorter, and come whole.
const READ: usize = 4 * 1024;

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

    /// What is written first, and what after that.
    fn pieces(&self) -> (Cow<'_, [u8]>, &[Bytes]) {
        match usize::try_from(self.length()) {
            Ok(0) => (Cow::Borrowed(&self.head), &[]),
            Ok(length) if length <= WRITE_AT_ONCE => {
                let mut whole = Vec::with_capacity(self.head.len() + length);
                whole.extend_from_slice(&self.head);
                self.body.iter().for_each(|piece| whole.extend_from_slice(piece));
                (Cow::Owned(whole), &[])
            }
            _ => (Cow::Borrowed(&self.head), &self.body),
        }
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
    pub(crate) stream: Upstream,
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

impl From<Refused> for Failure {
    fn from(Refused: Refused) -> Self {
        Self::Refused
    }
}

/// Sends the request and reads the answer's head, and its body where it is short.
pub(crate) async fn exchange(request: &Exchange) -> Result<Answer, Failure> {
    let (first, more) = request.pieces();
    let (stream, sent) = Upstream::connect_with(request.port, &first, !more.is_empty()).await?;
    in_time(talk(stream, first.get(sent..).unwrap_or_default(), more)).await
}

/// The same on a connection that stands.
pub(crate) async fn exchange_on(stream: Upstream, request: &Exchange) -> Result<Answer, Failure> {
    let (first, more) = request.pieces();
    in_time(talk(stream, &first, more)).await
}

async fn in_time(talk: impl Future<Output = Result<Answer, Failure>>) -> Result<Answer, Failure> {
    timeout(ANSWER_TIMEOUT, talk).await.map_err(|_| Failure::TimedOut)?
}

/// Writes what is still to be written, and reads.
async fn talk(stream: Upstream, first: &[u8], more: &[Bytes]) -> Result<Answer, Failure> {
    // sq answers 503 (its 512 connections are taken) without reading: a failed write may still have an answer to read.
    let written = write(&stream, first, more).await;
    let mut buffer = Vec::new();
    let head = loop {
        match read_some(&stream, &mut buffer).await {
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
    finish(stream, buffer, head).await
}

async fn finish(stream: Upstream, mut buffer: Vec<u8>, head: Head) -> Result<Answer, Failure> {
    let read = |buffer: &Vec<u8>| (buffer.len() - head.bytes) as u64;
    if head.length <= READ_AT_ONCE {
        while read(&buffer) < head.length {
            match read_some(&stream, &mut buffer).await {
                Ok(0) | Err(_) => return Err(Failure::Broken),
                Ok(_) => {}
            }
        }
    }
    // Whatever stands beyond the announced length is nobody's.
    let here = read(&buffer).min(head.length);
    let bytes = head.length - here;
    let end = head.bytes + usize::try_from(here).unwrap_or(usize::MAX);
    let rest = if bytes > 0 {
        Some(Rest { stream, bytes })
    } else {
        stream.end();
        None
    };
    Ok(Answer { status: head.status, headers: head.headers, first: Bytes::from(buffer).slice(head.bytes..end), rest })
}

async fn write(stream: &Upstream, first: &[u8], more: &[Bytes]) -> io::Result<()> {
    if !more.is_empty() {
        stream.set_nodelay()?;
    }
    stream.write_all(first).await?;
    for piece in more {
        stream.write_all(piece).await?;
    }
    Ok(())
}

async fn read_some(stream: &Upstream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    if buffer.capacity() - buffer.len() < READ / 2 {
        buffer.reserve(READ);
    }
    poll_fn(|cx| stream.poll_read(cx, buffer)).await
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
    use std::{future::Future, net::Ipv4Addr};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

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
