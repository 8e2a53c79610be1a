"""The machine: what it has, what processes cost, and that everything started here also ends."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TICKS = os.sysconf("SC_CLK_TCK")


class Broken(Exception):
    """The measurement itself is broken: its figures must not be used."""


def install(wanted):
    """Installs the Debian packages of `wanted` ({package: file that it brings}) whose file is missing."""
    missing = [package for package, path in wanted.items() if not os.path.exists(path)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Broken(f"missing, and there is no apt-get to install them with: {' '.join(missing)}")
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    print(f"installing {' '.join(missing)}", flush=True)
    with services_kept_from_starting(sudo):
        # An index from a fresh image is empty or stale, so the first try may fail.
        command = sudo + ["apt-get", "install", "-y", "-q", "--no-install-recommends"] + missing
        if subprocess.run(command, capture_output=True).returncode != 0:
            run(sudo + ["apt-get", "update", "-q"])
            run(command)


@contextmanager
def services_kept_from_starting(sudo):
    """Debian starts a server when it is installed, on every interface; policy-rc.d is its way of saying no."""
    policy = "/usr/sbin/policy-rc.d"
    ours = not os.path.exists(policy)
    if ours:
        run(sudo + ["sh", "-c", f"printf '#!/bin/sh\\nexit 101\\n' > {policy} && chmod 755 {policy}"])
    try:
        yield
    finally:
        if ours:
            run(sudo + ["rm", "-f", policy])


def run(command, **options):
    """Runs a command to its end; its output is shown only where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise Broken(f"{' '.join(map(str, command))}: exit {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def cores():
    """The core for the proxies, and the one for load and sq."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise Broken("two cores are needed: one for the proxy under test, one for load and sq")
    return usable[0], usable[1]


def pin(pid, core):
    """Moves a process with all its threads to one core."""
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), {core})


def family(pid):
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def cpu_seconds(pids):
    """User and system time that these processes have used, seconds (fields 14 and 15 of /proc/<pid>/stat)."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            raise Broken(f"process {pid} ended while it was measured") from None
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def cpu_shares(pids, seconds):
    """What each process of {name: pid} takes while so many seconds go by, percent of a core."""
    before = {name: cpu_seconds([pid]) for name, pid in pids.items()}
    time.sleep(seconds)
    return {name: 100 * (cpu_seconds([pid]) - before[name]) / seconds for name, pid in pids.items()}


def pss_bytes(pid):
    """Proportional set size: a page shared by n processes counts as 1/n in each. The kernel shows that of the proxy, which
    lets nobody look into its memory, to root alone; for others this is the resident set size, which is never less."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except PermissionError:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    for line in lines:
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise Broken(f"process {pid} has no PSS")


def end(process, grace=20):
    """Ends a child that was started here: asks, waits, then kills."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def scratch():
    """A directory that is gone afterwards, also after Ctrl-C or TERM."""

    def stop(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    # Short, as the path of a Unix socket has at most 107 bytes; resolved, as it is compared with command lines.
    directory = Path(tempfile.mkdtemp(prefix="sq-bench-")).resolve()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
