//! An sq dies, and somebody else takes its port and answers there.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::support::{
    DEADLINE, eventually,
    host::{Host, User, tenant},
    processes::signal,
};

const READ: &str = "/api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1";
const WRITE: &str = "/api/v2/update?p=diary&c=1.1.1/1.1.1/1.1.1";
/// Each next start waits twice as long (back-off), and a request waits ten seconds at most.
const KILLS: usize = 3;
const READERS: usize = 4;

/// Takes a port as soon as it can, keeps it, and answers whatever comes.
struct Squatter {
    port: Arc<AtomicU16>,
    seen: Arc<Mutex<Vec<Instant>>>,
    holds: Arc<AtomicU16>,
    done: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Squatter {
    fn start() -> Self {
        let (port, seen, done) = (Arc::new(AtomicU16::new(0)), Arc::<Mutex<Vec<Instant>>>::default(), Arc::new(AtomicBool::new(false)));
        let holds = Arc::new(AtomicU16::new(0));
        let (wanted, noted, over, got) = (port.clone(), seen.clone(), done.clone(), holds.clone());
        let thread = thread::spawn(move || {
            let mut taken: Vec<(u16, TcpListener)> = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let port = wanted.load(Ordering::Relaxed);
                if port != 0
                    && taken.iter().all(|(held, _)| *held != port)
                    && let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
                {
                    listener.set_nonblocking(true).unwrap();
                    taken.push((port, listener));
                    got.store(port, Ordering::Relaxed);
                }
                for (_, listener) in &taken {
                    if let Ok((mut stream, _)) = listener.accept() {
                        stream.set_nonblocking(false).unwrap();
                        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                        let mut request = [0; 4_096];
                        // The agent probes a port before it uses it, by connecting and saying nothing of a tenant.
                        if stream.read(&mut request).is_ok_and(|length| request[..length].windows(8).any(|bytes| bytes == b"/api/v2/")) {
                            noted.lock().unwrap().push(Instant::now());
                        }
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsquatter");
                    }
                }
                thread::yield_now();
            }
        });
        Self { port, seen, holds, done, thread: Some(thread) }
    }

    /// From now on it wants this one as well.
    fn want(&self, port: u16) {
        self.port.store(port, Ordering::Relaxed);
    }

    fn seen(&self) -> Vec<Instant> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Squatter {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

async fn read_on(user: User, done: Arc<AtomicBool>) {
    while !done.load(Ordering::Relaxed) {
        let answer = user.get(READ).await;
        assert!(matches!(answer.status, 200 | 502 | 503), "{answer:?}");
    }
}

/// Kills ada's sq again and again while a squatter waits for each of its ports; how long after each kill the squatter saw requests.
async fn killed_and_squatted(host: &Host) -> Vec<Duration> {
    let ada = host.user("ada");
    assert_eq!(ada.post(WRITE, b"still here").await.status, 200);
    let squatter = Squatter::start();
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..READERS).map(|_| tokio::spawn(read_on(ada.clone(), done.clone()))).collect();
    let mut late = Vec::new();
    for _ in 0..KILLS {
        let status = host.settled().await;
        let (pid, port, epoch) = (tenant(&status, "ada").pid.unwrap(), tenant(&status, "ada").port.unwrap(), tenant(&status, "ada").epoch);
        squatter.want(port);
        let before = squatter.seen().len();
        let killed = Instant::now();
        signal(pid, Signal::KILL);
        host.until("it runs again", |status| tenant(status, "ada").epoch > epoch && host.as_wanted(status)).await;
        let settled = Instant::now();
        assert_eq!(squatter.holds.load(Ordering::Relaxed), port, "nobody squats");
        for _ in 0..20 {
            assert_eq!(ada.get(READ).await.text(), "still here");
        }
        let seen = squatter.seen().split_off(before);
        assert!(seen.iter().all(|at| *at < settled), "a request reached the squatter when the row named another instance");
        late.extend(seen.iter().map(|at| at.saturating_duration_since(killed)));
    }
    // It would have said so.
    let before = squatter.seen().len();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, squatter.holds.load(Ordering::Relaxed))).unwrap();
    stream.write_all(format!("GET {READ} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
    eventually("the squatter sees what is sent to it", async || squatter.seen().len() == before + 1).await;
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        tokio::time::timeout(DEADLINE, reader).await.unwrap().unwrap();
    }
    late
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_squats_on_the_port_of_a_killed_sq_sees_not_one_request() {
    let host = Host::start(&["ada"]).await;
    let isolation = host.settled().await.agent.isolation.unwrap();
    if !isolation.network.is_on() {
        return eprintln!("not shown here: {:?}", isolation.network);
    }
    let seen = killed_and_squatted(&host).await;
    assert!(seen.is_empty(), "the squatter is in another network: {seen:?}");
}

/// Without a network of their own there is a moment between the death of an sq and the agent's word about it. This says how long it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_isolation_a_squatter_sees_nothing_once_the_agent_knows() {
    let mut host = Host::prepare(|wanted| {
        wanted.isolation = "off";
        wanted.add("ada");
    });
    host.launch().await;
    let mut seen = killed_and_squatted(&host).await;
    seen.sort();
    eprintln!("{KILLS} kills: {} requests reached the squatter, the last {:?} after the kill", seen.len(), seen.last());
}
