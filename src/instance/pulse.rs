//! Whether every instance still answers, at the least cost: asked at one turn of the loop's wheel, collected at a later one.
//!
//! 2,300 instances are asked every 10 s, for as long as the agent runs. A task a probe, woken at each of its steps, cost
//! twice the CPU; here a probe is six system calls, and nothing is woken for it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, connect, recv, send, sockopt::set_tcp_quickack},
};

use super::{
    network::Network,
    probe::{STATUS_END, parse_status},
};
use crate::observed::Moment;

/// Proves that sq accepts and starts threads; touches nothing and logs nothing.
const OPTIONS: &[u8] = b"OPTIONS / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Questions that wait for their answers. `T` says who was asked.
#[derive(Debug)]
pub struct Pulse<T> {
    network: Network,
    limit: Duration,
    open: Vec<Asked<T>>,
    /// Known at once: nobody listens there.
    refused: Vec<T>,
}

#[derive(Debug)]
struct Asked<T> {
    who: T,
    at: Moment,
    socket: OwnedFd,
    sent: bool,
    head: [u8; STATUS_END],
    filled: usize,
}

impl<T> Pulse<T> {
    /// Asks in `network`; an answer counts if it comes within `limit`.
    pub fn new(network: Network, limit: Duration) -> Self {
        Self { network, limit, open: Vec::new(), refused: Vec::new() }
    }

    /// Asks whoever listens on `port`. Does not wait.
    pub fn ask(&mut self, who: T, port: u16, now: Moment) {
        match begin(&self.network, port) {
            Ok(socket) => {
                let mut asked = Asked { who, at: now, socket, sent: false, head: [0; STATUS_END], filled: 0 };
                match asked.send() {
                    Ok(()) => self.open.push(asked),
                    Err(_) => self.refused.push(asked.who),
                }
            }
            Err(_) => self.refused.push(who),
        }
    }

    /// What came in since the last call: who answered, who did not (in time). Does not wait.
    ///
    /// Any HTTP answer counts; sq gives 204, or 503 at its 512 connections, which is busy and not dead.
    pub fn collect(&mut self, now: Moment) -> Vec<(T, bool)> {
        let mut known: Vec<(T, bool)> = self.refused.drain(..).map(|who| (who, false)).collect();
        for mut asked in std::mem::take(&mut self.open) {
            match asked.answer() {
                None if now.since(asked.at) < self.limit => self.open.push(asked),
                answer => known.push((asked.who, answer.unwrap_or(false))),
            }
        }
        known
    }
}

fn begin(network: &Network, port: u16) -> io::Result<OwnedFd> {
    let socket = network.socket()?;
    // The question itself acknowledges the connection: a packet less, and sq wakes up once instead of twice.
    set_tcp_quickack(&socket, false)?;
    match connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

impl<T> Asked<T> {
    /// On loopback the connection usually stands by now; where sq's backlog is full it does not, and this is tried again.
    fn send(&mut self) -> Result<(), Errno> {
        match send(&self.socket, OPTIONS, SendFlags::NOSIGNAL) {
            Ok(sent) => self.sent = sent == OPTIONS.len(),
            Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(()),
            Err(error) => return Err(error),
        }
        // A fresh socket has room for 80 bytes; anything else is broken.
        if self.sent { Ok(()) } else { Err(Errno::IO) }
    }

    /// Whether it answered; `None` while that is open.
    ///
    /// Only the status is read. What is left unread makes the close a reset, so that 230 probes a second do not keep 14,000
    /// sockets in TIME_WAIT; sq has written its answer in one piece and ignores what becomes of it.
    fn answer(&mut self) -> Option<bool> {
        if !self.sent && self.send().is_err() {
            return Some(false);
        }
        while self.filled < STATUS_END {
            match recv(&self.socket, &mut self.head[self.filled..], RecvFlags::empty()) {
                Ok((_, 0)) => return Some(false),
                Ok((_, count)) => self.filled += count,
                Err(Errno::AGAIN) => return None,
                Err(_) => return Some(false),
            }
        }
        Some(parse_status(&self.head).is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        time::Instant,
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(3);
    const START: Moment = Moment::from_millis(1_000);

    fn listener() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    /// Takes the next connection and reads the question.
    fn accept(listener: &TcpListener) -> TcpStream {
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = [0; OPTIONS.len()];
        stream.read_exact(&mut question).unwrap();
        assert_eq!(question, *OPTIONS);
        stream
    }

    /// Collects until something is known.
    fn collected(pulse: &mut Pulse<&'static str>) -> Vec<(&'static str, bool)> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let known = pulse.collect(START);
            if !known.is_empty() {
                return known;
            }
            assert!(Instant::now() < deadline, "nothing was collected");
        }
    }

    #[test]
    fn an_answer_is_collected_at_a_later_turn_and_once() {
        let (listener, port) = listener();
        let mut pulse = Pulse::new(Network::host(), LIMIT);
        pulse.ask("a", port, START);
        assert_eq!(pulse.collect(START), []);
        accept(&listener).write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        assert_eq!(collected(&mut pulse), [("a", true)]);
        assert_eq!(pulse.collect(START + LIMIT), []);
    }

    #[test]
    fn an_answer_in_pieces_is_put_together() {
        let (listener, port) = listener();
        let mut pulse = Pulse::new(Network::host(), LIMIT);
        pulse.ask("a", port, START);
        let mut stream = accept(&listener);
        stream.write_all(b"HTTP/1.").unwrap();
        assert_eq!(pulse.collect(START), []);
        stream.write_all(b"1 503 Busy\r\n").unwrap();
        assert_eq!(collected(&mut pulse), [("a", true)]);
    }

    #[test]
    fn one_that_listens_and_is_silent_fails_at_the_limit_and_holds_up_nobody() {
        let (silent, silent_port) = listener();
        let (well, well_port) = listener();
        let mut pulse = Pulse::new(Network::host(), LIMIT);
        pulse.ask("silent", silent_port, START);
        pulse.ask("well", well_port, START);
        accept(&well).write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        assert_eq!(collected(&mut pulse), [("well", true)]);
        assert_eq!(pulse.collect(START + (LIMIT - Duration::from_millis(1))), []);
        assert_eq!(pulse.collect(START + LIMIT), [("silent", false)]);
        drop(silent);
    }

    #[test]
    fn one_that_is_gone_closes_or_speaks_another_language_fails() {
        let (gone, gone_port) = listener();
        drop(gone);
        let mut pulse = Pulse::new(Network::host(), LIMIT);
        pulse.ask("gone", gone_port, START);
        assert_eq!(collected(&mut pulse), [("gone", false)]);
        let (listener, port) = listener();
        pulse.ask("closes", port, START);
        drop(accept(&listener));
        assert_eq!(collected(&mut pulse), [("closes", false)]);
        pulse.ask("foreign", port, START);
        accept(&listener).write_all(b"SSH-2.0-OpenSSH_9.6\r\n").unwrap();
        assert_eq!(collected(&mut pulse), [("foreign", false)]);
    }

    #[test]
    fn a_question_waits_for_room_in_a_full_backlog() {
        let (listener, port) = listener();
        // The standard library listens with a backlog of 128 or 4,096; one more than fits leaves a connect unanswered.
        rustix::net::listen(&listener, 0).unwrap();
        let mut pulse = Pulse::new(Network::host(), LIMIT);
        pulse.ask("first", port, START);
        pulse.ask("second", port, START);
        pulse.ask("third", port, START);
        assert_eq!(pulse.collect(START), []);
        let answer = |stream: &mut TcpStream| stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        answer(&mut accept(&listener));
        assert_eq!(collected(&mut pulse), [("first", true)]);
        assert_eq!(pulse.collect(START + LIMIT).len(), 2);
    }
}
