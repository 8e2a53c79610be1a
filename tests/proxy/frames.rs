//! A client of HTTP/2 that writes each frame by hand, and so can break every rule.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::{host::Host, support::DEADLINE};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub struct Raw {
    tls: TlsStream<TcpStream>,
}

/// What became of a stream.
#[derive(Debug)]
pub enum Outcome {
    Answered {
        status: u16,
        body: String,
    },
    /// Taken back, with this error code.
    Reset(u32),
    /// The connection went away, with this error code if it said one.
    Gone(Option<u32>),
}

impl Outcome {
    /// Whether the request was taken for malformed (RFC 9113 section 8.1.1), as h2 does it: most breaches end the stream, some the connection.
    pub fn is_malformed(&self) -> bool {
        const PROTOCOL_ERROR: u32 = 1;
        matches!(self, Self::Reset(PROTOCOL_ERROR) | Self::Gone(Some(PROTOCOL_ERROR)))
    }

    pub fn status(&self) -> u16 {
        match self {
            Self::Answered { status, .. } => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Whether it is a whole problem document of this kind.
    pub fn is_problem(&self, status: u16, slug: &str) -> bool {
        let Self::Answered { status: answered, body } = self else {
            return false;
        };
        let problem: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        *answered == status && problem["type"] == format!("urn:sq-agent:problem:{slug}") && problem["request_id"].is_string()
    }
}

impl Raw {
    /// Greets, and leaves the server all the room it could want.
    pub async fn connect(host: &Host) -> Self {
        Self::connect_with(host, &[]).await
    }

    /// The same with these settings.
    pub async fn connect_with(host: &Host, settings: &[u8]) -> Self {
        let mut raw = Self::silent(host).await;
        raw.tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        raw.send(SETTINGS, 0, 0, settings).await.unwrap();
        raw
    }

    /// Says nothing yet.
    pub async fn silent(host: &Host) -> Self {
        Self { tls: host.client().raw(b"h2").await.unwrap() }
    }

    /// What is under the frames.
    pub fn into_stream(self) -> TlsStream<TcpStream> {
        self.tls
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.tls.write_all(&frame(kind, flags, stream, payload)).await
    }

    /// Many frames in one write.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tls.write_all(bytes).await?;
        self.tls.flush().await
    }

    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.tls.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.tls.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// Sends a request's fields, and with `body` that, and waits for what becomes of it.
    pub async fn ask(&mut self, stream: u32, fields: &[(&str, &str)], body: Option<&[u8]>) -> Outcome {
        let flags = END_HEADERS | if body.is_none() { END_STREAM } else { 0 };
        // A server that has had enough may be gone already.
        let _ = self.send(HEADERS, flags, stream, &block(fields)).await;
        if let Some(body) = body {
            let _ = self.send(DATA, END_STREAM, stream, body).await;
        }
        self.outcome(stream).await
    }

    pub async fn outcome(&mut self, stream: u32) -> Outcome {
        let (mut answered, mut text) = (None, Vec::new());
        loop {
            let Some(frame) = timeout(DEADLINE, self.next()).await.expect("nothing becomes of it") else {
                return Outcome::Gone(None);
            };
            if frame.kind == GOAWAY {
                return Outcome::Gone(Some(code(&frame.payload[4..])));
            }
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                RST_STREAM if answered.is_none() => return Outcome::Reset(code(&frame.payload)),
                HEADERS => answered = Some(status(&frame.payload)),
                DATA => text.extend_from_slice(&frame.payload),
                _ => {}
            }
            if let Some(status) = answered
                && (frame.flags & END_STREAM != 0 || frame.kind == RST_STREAM)
            {
                return Outcome::Answered { status, body: String::from_utf8(text).unwrap() };
            }
        }
    }

    /// Writes these bytes over and over, `most` times at most, reading what comes meanwhile; how many times until the connection was gone.
    pub async fn flood(self, most: usize, mut bytes: impl FnMut(u32) -> Vec<u8>) -> Option<u32> {
        let (mut reader, mut writer) = tokio::io::split(self.tls);
        let reading = tokio::spawn(async move {
            let mut sink = vec![0; 64 * 1024];
            while reader.read(&mut sink).await.is_ok_and(|length| length > 0) {}
        });
        let flooding = async {
            for times in 0..u32::try_from(most).unwrap() {
                if writer.write_all(&bytes(times)).await.is_err() || writer.flush().await.is_err() {
                    return Some(times);
                }
                if reading.is_finished() {
                    return Some(times);
                }
            }
            None
        };
        timeout(DEADLINE, flooding).await.expect("the flood is neither taken nor ended")
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as HPACK literals, never indexed, without Huffman (RFC 7541 section 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            integer(&mut out, 0, 7, text.len());
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

/// An integer behind the bits of `first` (RFC 7541 section 5.1).
pub fn integer(out: &mut Vec<u8>, first: u8, prefix: u32, value: usize) {
    let most = (1 << prefix) - 1;
    if value < most {
        return out.push(first | u8::try_from(value).unwrap());
    }
    out.push(first | u8::try_from(most).unwrap());
    let mut rest = value - most;
    while rest >= 128 {
        out.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    out.push(u8::try_from(rest).unwrap());
}

fn code(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

/// The status at the start of the first answer of a connection: from the static table, or three digits in Huffman's code.
fn status(block: &[u8]) -> u16 {
    // An answer may begin with a new size of the table.
    let block = &block[block.iter().position(|byte| byte & 0xe0 != 0x20).unwrap()..];
    match block[0] {
        0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(block[0] - 0x88)],
        _ => {
            let bytes = block[2..].iter().take(3);
            let mut bits: String = bytes.map(|byte| format!("{byte:08b}")).collect();
            let mut digits = 0;
            for _ in 0..3 {
                let short = u16::from_str_radix(&bits[..5], 2).unwrap();
                let (digit, length) = if short < 3 { (short, 5) } else { (u16::from_str_radix(&bits[..6], 2).unwrap() - 0x19 + 3, 6) };
                digits = digits * 10 + digit;
                bits.drain(..length);
            }
            digits
        }
    }
}

#[test]
fn a_status_is_read_from_huffmans_code() {
    assert_eq!(status(&[0x48, 0x83, 0x69, 0x90, 0xff]), 431);
    assert_eq!(status(&[0x20, 0x88]), 200);
}
