//! The hostile instance: a program in sq's place that tries what sq must never be able to do, and notes what came of it.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            net::{SocketAddr as UnixAddr, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        signal::kill,
        uio::{RemoteIoVec, process_vm_readv},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use sq_agent::instance::limits::{MAX_FILE_BYTES, MAX_THREADS};

/// What to attack; lies in the instance's own data.
#[derive(Serialize, Deserialize)]
pub struct Orders {
    /// Another user's phext.
    pub other_file: PathBuf,
    /// A directory in which everybody may write.
    pub open_dir: PathBuf,
    /// Another instance.
    pub other_pid: i32,
    /// Its port.
    pub other_port: u16,
    /// A port nobody has.
    pub free_port: u16,
    /// A listener in the host's network.
    pub host_port: u16,
    /// The agent, with its socket, and one of its sockets without a path.
    pub agent_pid: i32,
    pub agent_socket: PathBuf,
    pub abstract_name: String,
    /// How many processes to start.
    pub forks: usize,
    /// What to end with.
    pub last: Last,
}

/// What cannot be noted by who did it.
#[derive(Serialize, Deserialize, PartialEq, Eq, Clone, Copy)]
pub enum Last {
    /// Nothing more.
    Nothing,
    /// Become a shell.
    Shell,
    /// Fill the disk.
    Disk,
    /// Start more threads than are allowed.
    Threads,
}

/// Names of files in the instance's data.
pub const ORDERS: &str = "orders.json";
pub const OUTCOME: &str = "outcome.json";
/// Written by the shell.
pub const SHELL: &str = "shell";
pub const THREADS: &str = "threads";

/// What came of each attempt: `None` is success, else the system's words.
pub type Outcome = BTreeMap<String, Option<String>>;

/// Runs with sq's own arguments: `host PORT --key K --data-dir DIR`.
pub fn run(args: &[String]) {
    let (port, data) = (args[2].parse().unwrap(), Path::new(&args[6]));
    let orders: Orders = serde_json::from_slice(&fs::read(data.join(ORDERS)).unwrap()).unwrap();
    fs::write(data.join(OUTCOME), serde_json::to_vec(&attempt(&orders, port, data)).unwrap()).unwrap();
    match orders.last {
        Last::Nothing => {}
        Last::Shell => {
            let shell = data.join(SHELL);
            let error = Command::new("/bin/sh").args(["-c", "echo here > \"$0\""]).arg(shell).exec();
            println!("no shell: {error}");
        }
        Last::Disk => fs::File::create(data.join("big")).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap(),
        Last::Threads => {
            let sleeper = || thread::Builder::new().stack_size(16 << 10).spawn(thread::park);
            let count = (0..2 * MAX_THREADS).take_while(|_| sleeper().is_ok()).count();
            fs::write(data.join(THREADS), count.to_string()).unwrap();
        }
    }
}

fn attempt(orders: &Orders, port: u16, data: &Path) -> Outcome {
    let other = Pid::from_raw(orders.other_pid);
    let mut outcome = Outcome::new();
    let mut note = |name: &str, result: io::Result<()>| drop(outcome.insert(name.into(), result.err().map(|error| error.to_string())));
    note("serve", TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map(drop));
    note("read another's file", fs::read(&orders.other_file).map(drop));
    note("write another's file", fs::OpenOptions::new().append(true).open(&orders.other_file).map(drop));
    note("write outside", fs::write(orders.open_dir.join(port.to_string()), ""));
    note("read another's key", fs::read(format!("/proc/{other}/cmdline")).map(drop));
    note("read another's memory", read_memory(other));
    note("connect to another", connect(orders.other_port));
    note("connect to the host", connect(orders.host_port));
    note("listen elsewhere", TcpListener::bind((Ipv4Addr::LOCALHOST, orders.free_port)).map(drop));
    note("connect to the agent's socket", UnixStream::connect(&orders.agent_socket).map(drop));
    let nameless = UnixAddr::from_abstract_name(&orders.abstract_name).unwrap();
    note("connect to an abstract socket", UnixStream::connect_addr(&nameless).map(drop));
    note("signal another", kill(other, None).map_err(io::Error::from));
    note("signal the agent", kill(Pid::from_raw(orders.agent_pid), None).map_err(io::Error::from));
    note("start processes", start_processes(orders.forks));
    note("make a link", std::os::unix::fs::symlink("/etc", data.join("link")));
    note("make namespaces", unshare(CloneFlags::CLONE_NEWUSER).map_err(io::Error::from));
    outcome
}

fn connect(port: u16) -> io::Result<()> {
    TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), Duration::from_secs(2)).map(drop)
}

/// Its first page of code; where that lies needs the same right to find out.
fn read_memory(pid: Pid) -> io::Result<()> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let base = maps.split('-').next().and_then(|start| usize::from_str_radix(start, 16).ok()).ok_or(io::ErrorKind::InvalidData)?;
    const LENGTH: usize = 4;
    let mut bytes = [0; LENGTH];
    process_vm_readv(pid, &mut [io::IoSliceMut::new(&mut bytes)], &[RemoteIoVec { base, len: LENGTH }])?;
    Ok(())
}

/// So many, all there at once; they end as their input does.
fn start_processes(count: usize) -> io::Result<()> {
    let start = |_| Command::new("/bin/sh").args(["-c", "read line"]).stdin(Stdio::piped()).spawn();
    let mut started = Vec::new();
    let result = (0..count).try_for_each(|n| start(n).map(|child| started.push(child)));
    for mut child in started {
        drop(child.stdin.take());
        child.wait()?;
    }
    result
}
