"""The agent under test: built, started on a state directory of its own, asked through its socket, ended with all its sq."""

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from . import jwt
from .host import ROOT, Broken, end, run

SQ_VERSION = "0.6.0"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
# Below the ports that the kernel gives to outgoing connections, and off the defaults, where a real agent may run.
PORTS = "20001-30999"


def build():
    """Builds the release binary from this tree."""
    print("building sq-agent (release)", flush=True)
    run(["cargo", "build", "--release", "--bin", "sq-agent"], cwd=ROOT)
    return TARGET / "release" / "sq-agent"


def sq_program():
    """Real sq: the one that SQ_BENCH_SQ names, else one installed once below target/ (the tests use the same)."""
    named = os.environ.get("SQ_BENCH_SQ")
    if named:
        return Path(named).resolve()
    root = TARGET / "tmp" / "sq" / SQ_VERSION
    if not (root / "bin" / "sq").exists():
        print(f"installing sq {SQ_VERSION}", flush=True)
        run(["cargo", "install", "sq", "--version", SQ_VERSION, "--root", str(root)])
    return root / "bin" / "sq"


def free_port():
    """A port that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Agent:
    """`sq-agent run` in `directory`, serving `ids` on `self.port`; `unserved` are tenants that are never ready."""

    def __init__(self, program, sq, directory, ids, *, cpu=None, isolation="auto", keys=None, more="", unserved=(), name="bench", ports=PORTS):
        self.directory = directory
        self.file = directory / "tenants.toml"
        self.state = directory / "state"
        self.secret = os.urandom(24).hex()
        self.port = free_port()
        self.name, self.ports = f"{name}-{os.getpid()}", ports
        self.isolation = isolation
        # Further keys of some tenants, and further tables, as tenants.toml writes them.
        self.keys = keys or {}
        self.more = more
        key = directory / "jwt.key"
        key.touch(mode=0o600)
        key.write_text(self.secret)
        self.sq = sq
        self.ids, self.unserved = list(ids), list(unserved)
        self.save()
        self.log = open(directory / "agent.log", "wb")
        self.program, self.cpu = program, cpu
        self.run()

    def run(self):
        """Starts `sq-agent run`."""
        # A session of its own: Ctrl-C at the terminal must reach it through `stop` alone.
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [self.program, "run", "--quiet", "--tenants", self.file],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            preexec_fn=(lambda: os.sched_setaffinity(0, {self.cpu})) if self.cpu is not None else None,
        )

    def kill(self):
        """SIGKILL; instances and proxy go on."""
        self.process.kill()
        self.process.wait()

    def save(self):
        """Saves tenants.toml as git and editors do: a new file, renamed over the old one."""
        # One tier that limits nothing: what is measured is the work, not the quota. 64 reads at once is the most that
        # the load asks for.
        text = f"""[agent]
state_dir = "state"
name = "{self.name}"
ports = "{self.ports}"
isolation = "{self.isolation}"
[sq]
binary = "{self.sq}"
[proxy]
listen = ["127.0.0.1:{self.port}"]
[[proxy.jwt]]
alg = "HS256"
secret_file = "jwt.key"
[tiers.free]
concurrency = 64
"""
        text += self.more
        text += "".join(f'[[tenants]]\nid = "{tenant}"\n{self.keys.get(tenant, "")}\n' for tenant in self.ids + self.unserved)
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.rename(self.file)

    def status(self):
        """The answer of `GET /status` on the agent's socket; None while there is none."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(10)
            try:
                stream.connect(str(self.state / "run" / "agent.sock"))
                stream.sendall(b"GET /status HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda: stream.recv(1 << 20), b""))
            except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
                if self.process.poll() is not None:
                    raise self.broken(f"it ended with exit {self.process.returncode}") from None
                return None
        head, _, body = answer.partition(b"\r\n\r\n")
        return json.loads(body) if head.startswith(b"HTTP/1.1 200 ") else None

    def ask(self, tenant, method, path, body=None):
        """One request of a tenant; its status."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=ssl._create_unverified_context())
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {jwt.mint(self.secret, tenant)}"})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def wait_ready(self, patience=120, pause=0.02):
        """Waits until all tenants are ready and the proxy is up; returns the status and the seconds since the start."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            status = self.status()
            now = time.monotonic()
            if status and status["proxy"]["pid"]:
                ready = {tenant["id"] for tenant in status["tenants"] if tenant["state"] == "ready"}
                if ready.issuperset(self.ids):
                    return status, now - self.started
            time.sleep(pause)
        raise self.broken(f"not all of {len(self.ids)} tenants were ready within {patience} s")

    def proxy_pid(self):
        """The proxy's process."""
        status = self.status()
        if not status or not status["proxy"]["pid"]:
            raise self.broken("its proxy is down")
        return status["proxy"]["pid"]

    def broken(self, why):
        """An error with the last lines of the agent's log."""
        self.log.flush()
        lines = (self.directory / "agent.log").read_text(errors="replace").splitlines()[-20:]
        return Broken("\n".join([f"sq-agent: {why}; its last lines:", *lines]))

    def stop(self):
        """Ends the agent, which ends its proxy and instances; what it left behind is ended by pid."""
        end(self.process, grace=60)
        self.log.close()
        self.sweep()

    def lose_power(self):
        """Ends everything at once, as a host does that loses its power; where this is root, cached files are forgotten too."""
        self.kill()
        self.sweep()
        if os.geteuid() == 0:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")

    def sweep(self):
        """Nothing of it is left but its state directory."""
        while pids := list(leftovers(self.state)):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for page in Path("/dev/shm").glob(f"sq-agent-{self.name}-*"):
            page.unlink(missing_ok=True)


@contextmanager
def beside(program, sq, directory, ids, **more):
    """Two agents with the same tenants, all ready: one under test, and one for work that is to be elsewhere on this machine."""
    with ExitStack() as started:
        agents = []
        for name, ports in (("bench", "20001-25499"), ("elsewhere", "25500-30999")):
            (directory / name).mkdir()
            agents.append(Agent(program, sq, directory / name, ids, name=name, ports=ports, **more))
            started.callback(agents[-1].stop)
        for agent in agents:
            agent.wait_ready()
        yield agents


def leftovers(state):
    """Every process whose command line names this state directory: instances, and the proxy."""
    mark = os.fsencode(state)
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if any(mark in argument for argument in command_line(pid)) and pid != os.getpid():
            yield pid


def command_line(pid):
    """The arguments of a process, bytes; none where it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


def instance_key(pid):
    """The key that an instance was started with, from its command line (`sq host PORT --key K --data-dir D`)."""
    arguments = command_line(pid)
    return arguments[arguments.index(b"--key") + 1].decode()
