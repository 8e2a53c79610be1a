//! The route table between real processes: readers read without a pause, the writer is killed (SIGKILL) at random points and a new
//! one takes over the same file, a reader is stopped (SIGSTOP) meanwhile. And: who writes to a read-only table dies.
//!
//! Three seconds by default; `SQ_AGENT_STRESS_SECONDS=600 cargo test --release --test route_stress` for longer.
#![allow(unsafe_code)] // reason: one test writes where it must not, to see the kernel forbid it
#![allow(clippy::unwrap_used, clippy::print_stdout)] // reason: all of this file is test, also the functions that clippy does not take for one

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sq_agent::route::{Durability, Route, RouteLimits, RouteState, Row, TableReader, TableWriter, Writes};

/// Tenants; a fifth of them is away at any time.
const TENANTS: u64 = 400;
/// Readers that run all the time; one more is stopped now and then.
const READERS: usize = 2;

/// What a child process is told by its environment.
const ROLE: &str = "SQ_AGENT_ROUTE_STRESS_ROLE";
const PATH: &str = "SQ_AGENT_ROUTE_STRESS_PATH";
const MILLIS: &str = "SQ_AGENT_ROUTE_STRESS_MILLIS";

/// Everything in a row follows from the generation and the tenant's number, so a row that mixes two publishes betrays itself.
fn row(tenant: u64, generation: u64) -> Row {
    let noise = mixed(generation << 20 | tenant);
    // Limits change more rarely: as long as they stay, the writer takes its quick path.
    let (tier, era) = (tenant % 4, generation / 16);
    Row {
        id: format!("tenant-{tenant}@example.com"),
        port: noise as u16,
        state: RouteState::from_word(1 + (noise >> 16) as u8 % 6).unwrap(),
        epoch: generation,
        slot: ((tenant + generation) % 32_768) as u32,
        tokens_valid_after: !noise,
        limits: RouteLimits {
            interval_ns: mixed(era),
            burst: era as u32,
            requests_per_day: !era as u32,
            concurrency: tier as u16,
            queue: !era as u16,
            body_max: mixed(era << 2 | tier),
            memory_max: mixed(era << 2 | tier),
            storage_max: mixed(era << 3 | tier),
            durability: [Durability::Process, Durability::Power, Durability::Off][tier as usize % 3],
        },
        writes: [Writes::All, Writes::OverStorage { used: noise }, Writes::DiskLow][(noise >> 8) as usize % 3],
        api_keys: if tenant.is_multiple_of(4) { vec![key(tenant)] } else { Vec::new() },
    }
}

fn is_there(tenant: u64, generation: u64) -> bool {
    generation > 0 && !(generation / 8 + tenant).is_multiple_of(5)
}

fn key(tenant: u64) -> [u8; 32] {
    let mut key = [0; 32];
    key.as_chunks_mut::<8>().0.iter_mut().zip(0..).for_each(|(bytes, n)| *bytes = mixed(tenant << 8 | n).to_le_bytes());
    key
}

/// SplitMix64's finisher.
fn mixed(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// Publishes generation after generation until its time is over, or it is killed.
fn write_without_a_pause(path: &Path, until: Instant) {
    let mut writer = TableWriter::open(path).unwrap();
    while Instant::now() < until {
        let next = writer.generation() + 1;
        let rows: Vec<_> = (0..TENANTS).filter(|tenant| is_there(*tenant, next)).map(|tenant| row(tenant, next)).collect();
        assert_eq!(writer.publish(&rows).unwrap(), next);
    }
}

/// Looks tenants up until its time is over, and checks every answer.
fn read_without_a_pause(path: &Path, until: Instant) {
    let reader = TableReader::map(File::open(path).unwrap()).unwrap();
    let (mut last, mut reads, mut busy, mut changes) = (0, 0_u64, 0_u64, 0_u64);
    while Instant::now() < until {
        for tenant in 0..TENANTS {
            let before = reader.generation();
            let by_key = tenant.is_multiple_of(4) && reads.is_multiple_of(2);
            let id = format!("tenant-{tenant}@example.com");
            let found = if by_key {
                reader.lookup_api_key(&key(tenant)).map(|found| {
                    found.map(|(owner, route)| {
                        assert_eq!(owner.as_str(), id);
                        route
                    })
                })
            } else {
                reader.lookup(&id)
            };
            let after = reader.generation();
            assert!(last <= before && before <= after, "the generation went back: {last}, {before}, {after}");
            last = after;
            reads += 1;
            changes += u64::from(before != after);
            match found {
                Ok(route) => check(tenant, route, before, after),
                Err(_) => busy += 1,
            }
        }
    }
    assert!(busy * 1_000 <= reads, "{busy} of {reads} reads found no quiet moment");
    println!("{reads} reads, {busy} busy, generation {last}, which changed during {changes}");
}

/// A row of one publish, no older than the generation before the look-up, no newer than the one being published after it.
fn check(tenant: u64, route: Option<Route>, before: u64, after: u64) {
    let Some(route) = route else {
        let away = (before..=after + 1).any(|generation| !is_there(tenant, generation));
        assert!(away, "tenant {tenant} was there all the time from {before} to {after}");
        return;
    };
    let Row { port, state, epoch, slot, tokens_valid_after, limits, writes, .. } = row(tenant, route.epoch);
    assert_eq!(route, Route { port, state, epoch, slot, tokens_valid_after, limits, writes }, "torn");
    assert!(is_there(tenant, route.epoch), "tenant {tenant} was away in {}", route.epoch);
    assert!(before <= route.epoch && route.epoch <= after + 1, "a row of {} between {before} and {after}", route.epoch);
}

/// Writes to the mapping of a reader, which must end this process.
fn scribble(path: &Path) {
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
    let reader = TableReader::map(File::open(path).unwrap()).unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.ends_with(path.to_str().unwrap())).unwrap();
    assert!(line.contains(" r--s "), "{line}");
    let start = usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    println!("about to write");
    // SAFETY: none; the address is that of the page's first word, and the point is that the kernel ends the process here.
    unsafe { std::ptr::with_exposed_provenance_mut::<u64>(start).write_volatile(1) };
    println!("written, generation {}", reader.generation());
}

/// Not a test of its own: what the other tests start as child processes.
#[test]
fn plays_the_part_it_is_given() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let path = PathBuf::from(std::env::var(PATH).unwrap());
    let until = Instant::now() + Duration::from_millis(std::env::var(MILLIS).unwrap().parse().unwrap());
    match role.as_str() {
        "writer" => write_without_a_pause(&path, until),
        "reader" => read_without_a_pause(&path, until),
        _ => scribble(&path),
    }
}

fn start(role: &str, path: &Path, time: Duration) -> Part {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "plays_the_part_it_is_given", "--nocapture"])
        .env(ROLE, role)
        .env(PATH, path)
        .env(MILLIS, time.as_millis().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Part { pid: Pid::from_raw(child.id() as i32), child: Some(child) }
}

/// A child that does not outlive its test, stopped or not.
struct Part {
    child: Option<Child>,
    pid: Pid,
}

impl Part {
    fn end(mut self) -> Output {
        self.child.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}

/// Waits for a condition that other processes bring about.
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// Whether a writer died inside a publish: one of the two sequence words (64 bytes apart, in the header) is odd.
fn is_half_written(path: &Path) -> bool {
    let file = File::open(path).unwrap();
    [24, 32].into_iter().any(|word| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 8 * word).unwrap();
        u64::from_le_bytes(bytes) % 2 == 1
    })
}

#[test]
fn readers_see_whole_rows_and_no_generation_twice_while_writers_die_at_any_point() {
    let seconds = std::env::var("SQ_AGENT_STRESS_SECONDS").map_or(3, |seconds| seconds.parse().unwrap());
    let (time, began) = (Duration::from_secs(seconds), Instant::now());
    // The children end by themselves, later than this test unless it fails.
    let longer = time + Duration::from_secs(30);
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("routes");
    drop(TableWriter::open(&path).unwrap());
    let table = TableReader::map(File::open(&path).unwrap()).unwrap();
    let mut readers: Vec<_> = (0..=READERS).map(|_| start("reader", &path, time)).collect();
    let stopped = readers[READERS].pid;
    let (mut random, mut kills, mut half_written, mut stops) = (u64::from(std::process::id()), 0, 0, 0);
    // Most kills fall between two publishes; on a busy machine it may take some more until one falls inside.
    while began.elapsed() < time || kills < 8 || (half_written == 0 && began.elapsed() < 8 * time) {
        let writer = start("writer", &path, longer);
        if kills % 8 == 2 {
            kill(stopped, Signal::SIGSTOP).unwrap();
            stops += 1;
        }
        random = mixed(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
        let target = table.generation() + 1 + random % 8;
        wait_for("the next generations, whoever is stopped", || table.generation() >= target);
        // Then anywhere between two generations.
        let (moment, delay) = (Instant::now(), Duration::from_nanos((random >> 32) % 3_000_000));
        wait_for("a random moment", || moment.elapsed() >= delay);
        kill(writer.pid, Signal::SIGKILL).unwrap();
        assert_eq!(writer.end().status.signal(), Some(Signal::SIGKILL as i32), "the writer lived until it was killed");
        kills += 1;
        half_written += u32::from(is_half_written(&path));
        if kills % 8 == 6 {
            kill(stopped, Signal::SIGCONT).unwrap();
        }
    }
    kill(stopped, Signal::SIGCONT).unwrap();
    for reader in readers.drain(..) {
        let output = reader.end();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains(" reads, "), "{said}{}", String::from_utf8_lossy(&output.stderr));
        print!("{}", said.lines().filter(|line| line.contains(" reads, ")).map(|line| format!("{line}\n")).collect::<String>());
    }
    println!(
        "{kills} writers killed, {half_written} of them inside a publish; a reader stopped {stops} times; generation {}",
        table.generation()
    );
    assert!(half_written > 0, "no writer of {kills} died inside a publish");
}

#[test]
fn a_reader_that_writes_to_the_table_dies_of_it() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("routes");
    let mut writer = TableWriter::open(&path).unwrap();
    writer.publish(&[row(1, 1)]).unwrap();
    let output = start("scribbler", &path, Duration::ZERO).end();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("about to write") && !said.contains("written, generation"), "{said}");
    assert_eq!(output.status.signal(), Some(Signal::SIGSEGV as i32), "{said}");
    let table = TableReader::map(writer.share().unwrap()).unwrap();
    assert!(table.lookup(&row(1, 1).id).unwrap().is_some(), "nobody else felt it");
}
