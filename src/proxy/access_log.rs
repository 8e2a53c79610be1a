//! One JSON line a request, written by one thread beside the requests: a slow disk costs lines (counted), never time.
//!
//! Lines go out whole, many by one call, to a file opened for append: what two proxies write side by side is not mixed up, and the agent may give
//! standard output another file at any time (see `log_shelf`) without a line lost or torn.

use std::{
    io::{self, Write},
    net::IpAddr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use http::{Method, Uri, Version};
use serde::Serialize;

use super::{request_id::RequestId, trace::TraceId};
use crate::desired::TenantId;

/// Lines that may wait for the disk, about 4 MB: half a second at 20,000 requests a second.
const BACKLOG: usize = 10_000;

/// So many lines are written without waiting for more.
const BATCH: usize = 1_000;

/// A line waits so long for others to be written with it.
const GATHER: Duration = Duration::from_millis(20);

/// So much is written by one call, bytes, and the rest of a line.
const AT_ONCE: usize = 64 * 1024;

/// Longest path in a line, bytes; sq's paths have about 20.
const MAX_PATH: usize = 256;

/// What is remembered of a request until its line is written.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) at: SystemTime,
    pub(crate) request_id: RequestId,
    pub(crate) trace: Option<TraceId>,
    pub(crate) peer: IpAddr,
    pub(crate) tenant: Option<TenantId>,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) status: u16,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) total: Duration,
    /// Until it was known who asks, and where their instance is.
    pub(crate) auth: Duration,
    /// For the instance, and for a turn.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
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
    ms_auth: f64,
    ms_parked: f64,
    ms_upstream: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cut: bool,
}

impl Entry {
    fn write(&self, out: &mut Vec<u8>) {
        let path = self.uri.path();
        let line = Line {
            time: humantime::format_rfc3339_millis(self.at).to_string(),
            request_id: self.request_id.as_str(),
            trace_id: self.trace.as_ref().map(TraceId::as_str),
            peer: self.peer,
            tenant: self.tenant.as_ref().map(TenantId::as_str),
            method: self.method.as_str(),
            path: path.get(..path.floor_char_boundary(MAX_PATH)).unwrap_or(path),
            http: if self.version == Version::HTTP_2 { "h2" } else { "h1" },
            status: self.status,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            ms: milliseconds(self.total),
            ms_auth: milliseconds(self.auth),
            ms_parked: milliseconds(self.parked),
            ms_upstream: milliseconds(self.upstream),
            refused: self.refused,
            cut: self.cut,
        };
        // Strings and numbers always serialize, and a Vec takes all.
        let _ = serde_json::to_writer(&mut *out, &line);
        out.push(b'\n');
    }
}

/// With three decimals.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

/// The way to the log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AccessLog(Arc<Open>);

/// Closes the queue when the last way to it is gone.
struct Open(Arc<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    news: Condvar,
    /// Lines that were lost, until somebody asks.
    lost: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    entries: Vec<Entry>,
    dropped: u64,
    closed: bool,
}

/// The process's standard output, not buffered, whatever file that is at the time.
pub(crate) struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(rustix::stdio::stdout(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AccessLog {
    /// Starts the thread that writes to `out`. It ends when the last clone is dropped and all is written.
    pub(crate) fn start(out: impl Write + Send + 'static) -> io::Result<(Self, JoinHandle<()>)> {
        let queue = Arc::new(Queue::default());
        let reader = Arc::clone(&queue);
        let thread = thread::Builder::new().name("access-log".into()).spawn(move || write_all(&reader, out))?;
        Ok((Self(Arc::new(Open(queue))), thread))
    }

    /// How many lines were lost since the last call.
    pub(crate) fn take_lost(&self) -> u64 {
        self.0.0.lost.swap(0, Ordering::Relaxed)
    }

    /// Hands a line over, or counts it as dropped.
    pub(crate) fn log(&self, entry: Entry) {
        let queue = &self.0.0;
        let mut waiting = queue.lock();
        if waiting.entries.len() >= BACKLOG {
            waiting.dropped += 1;
            queue.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.entries.push(entry);
        // The thread needs a word only for the first line, and when there is much: a wake-up a line would cost more than the line.
        let wake = waiting.entries.len() == 1 || waiting.entries.len() == BATCH;
        drop(waiting);
        if wake {
            queue.news.notify_one();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.news.notify_one();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing under the lock can panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines, and a little longer for more; `None` at the end.
    fn take(&self) -> Option<(Vec<Entry>, u64)> {
        let waiting = self.lock();
        let waiting = self.news.wait_while(waiting, |waiting| waiting.entries.is_empty() && !waiting.closed);
        let more = |waiting: &mut Waiting| waiting.entries.len() < BATCH && !waiting.closed;
        let collected = self.news.wait_timeout_while(waiting.unwrap_or_else(PoisonError::into_inner), GATHER, more);
        let (mut waiting, _) = collected.unwrap_or_else(PoisonError::into_inner);
        let lines = (std::mem::take(&mut waiting.entries), std::mem::take(&mut waiting.dropped));
        (!lines.0.is_empty() || lines.1 > 0).then_some(lines)
    }
}

fn write_all(queue: &Queue, out: impl Write) {
    let mut lines = Lines { out, buffer: Vec::with_capacity(2 * AT_ONCE), waiting: 0, cut: false };
    let mut lost = 0;
    while let Some((entries, dropped)) = queue.take() {
        lost += dropped;
        for entry in &entries {
            entry.write(&mut lines.buffer);
            lines.waiting += 1;
            if lines.buffer.len() >= AT_ONCE {
                lost += lines.send(queue);
            }
        }
        lost += lines.send(queue);
        // Once the disk has room again, say.
        if lost > 0 {
            let time = humantime::format_rfc3339_millis(SystemTime::now());
            lines.buffer.extend_from_slice(format!("{{\"time\":\"{time}\",\"dropped_lines\":{lost}}}\n").as_bytes());
            if lines.send(queue) == 0 {
                lost = 0;
            }
        }
    }
}

/// Whole lines on their way out.
struct Lines<W> {
    out: W,
    buffer: Vec<u8>,
    /// Requests whose lines are in the buffer.
    waiting: u64,
    /// What was written last is part of a line.
    cut: bool,
}

impl<W: Write> Lines<W> {
    /// Writes all that is in the buffer, as a rule by one call. Where that fails, the lines that are not out as a whole are lost; returns how many
    /// (of a line that is no request's, 1), also as lost in `queue`.
    fn send(&mut self, queue: &Queue) -> u64 {
        let mends = self.cut;
        if mends {
            // A disk that was full took a part of a line: the next one begins on its own.
            self.buffer.insert(0, b'\n');
        }
        let mut sent = 0;
        while let Some(rest) = self.buffer.get(sent..).filter(|rest| !rest.is_empty()) {
            match self.out.write(rest) {
                Ok(0) => break,
                Ok(written) => sent += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let (out, left) = self.buffer.split_at(sent.min(self.buffer.len()));
        if let Some(last) = out.last() {
            self.cut = *last != b'\n';
        }
        let ends = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        let lost = ends(left).saturating_sub(u64::from(mends && sent == 0));
        queue.lost.fetch_add(lost.min(self.waiting), Ordering::Relaxed);
        self.buffer.clear();
        self.waiting = 0;
        lost
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn entry(uri: &str) -> Entry {
        Entry {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
            request_id: RequestId::of_client(b"r-1").unwrap(),
            trace: None,
            peer: IpAddr::from([127, 0, 0, 1]),
            tenant: TenantId::parse("alice").ok(),
            method: Method::GET,
            uri: uri.parse().unwrap(),
            version: Version::HTTP_2,
            status: 503,
            bytes_in: 1,
            bytes_out: 2,
            total: Duration::from_micros(1_500),
            auth: Duration::from_micros(250),
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
        assert_eq!((&line["ms_auth"], &line["trace_id"]), (&0.25.into(), &serde_json::Value::Null));
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

    /// A disk with room for so many bytes, written by calls of which each was noted.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<Platter>>);

    #[derive(Default)]
    struct Platter {
        text: Vec<u8>,
        room: usize,
        calls: Vec<usize>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let takes = bytes.len().min(disk.room);
            if takes == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.text.extend_from_slice(&bytes[..takes]);
            disk.room -= takes;
            disk.calls.push(takes);
            Ok(takes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_go_out_whole_and_many_at_once() {
        let disk = Disk::default();
        disk.0.lock().unwrap().room = usize::MAX;
        let (log, thread) = AccessLog::start(disk.clone()).unwrap();
        for _ in 0..BATCH {
            log.log(entry("/api/v2/select"));
        }
        drop(log);
        thread.join().unwrap();
        let disk = disk.0.lock().unwrap();
        let mut at = 0;
        for written in &disk.calls {
            at += written;
            assert_eq!(disk.text[at - 1], b'\n', "a call that ends within a line");
        }
        assert!(disk.calls.len() < BATCH / 50, "{} calls", disk.calls.len());
    }

    #[test]
    fn on_a_full_disk_whole_lines_are_lost_and_counted_and_the_next_ones_begin_on_their_own() {
        let mut line = Vec::new();
        entry("/").write(&mut line);
        let disk = Disk::default();
        // Two lines and a half.
        disk.0.lock().unwrap().room = 2 * line.len() + line.len() / 2;
        let queue = Queue::default();
        let mut lines = Lines { out: disk.clone(), buffer: line.repeat(5), waiting: 5, cut: false };
        assert_eq!((lines.send(&queue), queue.lost.load(Ordering::Relaxed)), (3, 3));
        lines.buffer.extend_from_slice(&line);
        lines.waiting = 1;
        assert_eq!((lines.send(&queue), queue.lost.load(Ordering::Relaxed)), (1, 4));
        disk.0.lock().unwrap().room = usize::MAX;
        lines.buffer.extend_from_slice(&line);
        assert_eq!(lines.send(&queue), 0);
        let text = disk.0.lock().unwrap().text.clone();
        let whole = text.split(|&byte| byte == b'\n').filter(|line| serde_json::from_slice::<serde_json::Value>(line).is_ok());
        assert_eq!(whole.count(), 3, "{}", String::from_utf8_lossy(&text));
    }
}
