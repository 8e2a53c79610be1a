//! One JSON line a request, written by one thread beside the requests: a slow disk costs lines (counted), never time.

use std::{
    io::{self, BufWriter, Write},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use http::{Method, Uri, Version};
use serde::Serialize;

use super::request_id::RequestId;
use crate::desired::TenantId;

/// Lines that may wait for the disk, about 4 MB: half a second at 20,000 requests a second.
const BACKLOG: usize = 10_000;

/// Longest path in a line, bytes; sq's paths have about 20.
const MAX_PATH: usize = 256;

/// What is remembered of a request until its line is written.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) at: SystemTime,
    pub(crate) request_id: RequestId,
    pub(crate) peer: IpAddr,
    pub(crate) tenant: Option<TenantId>,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) status: u16,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) total: Duration,
    pub(crate) parked: Duration,
    pub(crate) upstream: Duration,
    /// Slug of the problem, where the proxy refused.
    pub(crate) refused: Option<&'static str>,
    /// The answer did not reach its end.
    pub(crate) cut: bool,
}

/// A line as it is written. The query is left out whole: its values are the tenant's text.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    request_id: &'a str,
    peer: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    method: &'a str,
    path: &'a str,
    http: &'static str,
    status: u16,
    bytes_in: u64,
    bytes_out: u64,
    ms: f64,
    ms_parked: f64,
    ms_upstream: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cut: bool,
}

impl Entry {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let path = self.uri.path();
        let line = Line {
            time: humantime::format_rfc3339_millis(self.at).to_string(),
            request_id: self.request_id.as_str(),
            peer: self.peer,
            tenant: self.tenant.as_ref().map(TenantId::as_str),
            method: self.method.as_str(),
            path: path.get(..path.floor_char_boundary(MAX_PATH)).unwrap_or(path),
            http: if self.version == Version::HTTP_2 { "h2" } else { "h1" },
            status: self.status,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            ms: milliseconds(self.total),
            ms_parked: milliseconds(self.parked),
            ms_upstream: milliseconds(self.upstream),
            refused: self.refused,
            cut: self.cut,
        };
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")
    }
}

/// With three decimals.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

/// The way to the log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AccessLog {
    lines: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Starts the thread that writes to `out`. It ends when the last clone is dropped and all is written.
    pub(crate) fn start(out: impl Write + Send + 'static) -> io::Result<(Self, JoinHandle<()>)> {
        let (lines, receiver) = sync_channel(BACKLOG);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&dropped);
        let thread = thread::Builder::new().name("access-log".into()).spawn(move || write_all(&receiver, &counted, out))?;
        Ok((Self { lines, dropped }, thread))
    }

    /// Hands a line over, or counts it as dropped.
    pub(crate) fn log(&self, entry: Entry) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.lines.try_send(entry) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_all(lines: &Receiver<Entry>, dropped: &AtomicU64, out: impl Write) {
    let mut out = BufWriter::with_capacity(64 * 1024, out);
    while let Ok(first) = lines.recv() {
        let batch = std::iter::once(first).chain(std::iter::from_fn(|| lines.try_recv().ok()));
        for entry in batch {
            if entry.write(&mut out).is_err() {
                dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        let told = if lost > 0 { writeln!(out, "{{\"dropped_lines\":{lost}}}") } else { Ok(()) };
        if told.and_then(|()| out.flush()).is_err() {
            // The disk is full, say. What is in the buffer is tried again with the next line.
            dropped.fetch_add(lost, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;

    fn entry(uri: &str) -> Entry {
        Entry {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
            request_id: RequestId::of_client(b"r-1").unwrap(),
            peer: IpAddr::from([127, 0, 0, 1]),
            tenant: TenantId::parse("alice").ok(),
            method: Method::GET,
            uri: uri.parse().unwrap(),
            version: Version::HTTP_2,
            status: 503,
            bytes_in: 1,
            bytes_out: 2,
            total: Duration::from_micros(1_500),
            parked: Duration::ZERO,
            upstream: Duration::ZERO,
            refused: Some("not-ready"),
            cut: false,
        }
    }

    /// Keeps what is written; each write first waits for a permit where there is a gate.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>, Option<Arc<Mutex<mpsc::Receiver<()>>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(gate) = &self.1 {
                let _ = gate.lock().unwrap().recv();
            }
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn lines(&self) -> Vec<serde_json::Value> {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    #[test]
    fn a_line_says_what_happened_and_never_what_was_asked_for() {
        let sink = Sink::default();
        let (log, thread) = AccessLog::start(sink.clone()).unwrap();
        log.log(entry("/api/v2/insert?p=diary&s=my%20secret"));
        drop(log);
        thread.join().unwrap();
        let line = &sink.lines()[0];
        assert_eq!(line["time"], "1970-01-01T00:00:01.500Z");
        assert_eq!(line["path"], "/api/v2/insert");
        assert_eq!((&line["tenant"], &line["http"], &line["ms"]), (&"alice".into(), &"h2".into(), &1.5.into()));
        assert!(!line.to_string().contains("diary") && !line.to_string().contains("secret"));
    }

    #[test]
    fn lines_that_the_disk_cannot_take_are_counted_not_waited_for() {
        let (open, gate) = mpsc::channel();
        let sink = Sink(Arc::default(), Some(Arc::new(Mutex::new(gate))));
        let (log, thread) = AccessLog::start(sink.clone()).unwrap();
        let sent = BACKLOG as u64 * 3;
        for _ in 0..sent {
            log.log(entry("/"));
        }
        drop(log);
        drop(open);
        thread.join().unwrap();
        let lines = sink.lines();
        let lost: u64 = lines.iter().filter_map(|line| line["dropped_lines"].as_u64()).sum();
        let written = lines.iter().filter(|line| line["status"].is_u64()).count() as u64;
        assert!(lost > 0);
        assert_eq!(written + lost, sent);
    }
}
