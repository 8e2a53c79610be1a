"""Load from the ordinary tools, bounded in time; figures with errors in them are refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

from . import table
from .host import Broken
from .rivals import TEMPLATES

STEADY = Path(__file__).resolve().parent / "steady.py"

# Debian packages, and a file by which to see that each is there.
PACKAGES = {"wrk": "/usr/bin/wrk", "apache2-utils": "/usr/bin/ab"}


def _run(command, seconds, core):
    """Runs a load generator, on one core where that is named; its output."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        preexec_fn=(lambda: os.sched_setaffinity(0, {core})) if core is not None else None,
    )


def writes(url, authorization, body, seconds):
    """One kept TLS connection that posts `body` bytes, one request after the other. `authorization` is a file with the header's value."""
    command = ["wrk", "-t", "1", "-c", "1", "-d", f"{max(1, round(seconds))}s", "--timeout", "10s"]
    return _figures(url, _run([*command, "-s", TEMPLATES / "wrk.lua", url, "--", authorization, str(body)], seconds, None))


def wrk(url, authorizations, connections, seconds, core, body=None):
    """Kept TLS connections, one request after the other on each, which posts `body` bytes where that is given. `authorizations` is a file with
    one header value a line."""
    command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{max(1, round(seconds))}s", "--timeout", "10s"]
    arguments = [authorizations] if body is None else [authorizations, str(body)]
    return _figures(url, _run([*command, "-s", TEMPLATES / "wrk.lua", url, "--", *arguments], seconds, core))


def _figures(url, done):
    """What the script behind wrk counted, unless something failed."""
    line = next((line for line in done.stdout.splitlines() if line.startswith("FIGURES ")), None)
    if done.returncode != 0 or line is None:
        raise Broken(f"wrk on {url}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    figures = json.loads(line.removeprefix("FIGURES "))
    wrong = {kind: figures[kind] for kind in ("connect", "read", "write", "timeout", "status") if figures[kind]}
    if wrong or not figures["requests"]:
        raise Broken(f"wrk on {url}: {figures['requests']} requests, errors {wrong}")
    return figures


def step_aside(nice):
    """Niceness counts within a session's group for the scheduler alone, so the group gets it too (sched(7), autogroup)."""
    os.setsid()
    os.nice(nice)
    group = Path("/proc/self/autogroup")
    if group.exists():
        group.write_text(str(nice))


class Steady:
    """Requests at a constant rate whatever the answers, by steady.py, begun at once."""

    def __init__(self, port, path, authorizations, rate, seconds, core, *, tls=True, connections=64):
        arguments = [str(port), path, authorizations, str(rate), str(seconds), str(connections), "tls" if tls else "plain"]
        self.seconds = seconds
        self.process = subprocess.Popen(
            [sys.executable, STEADY, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    def result(self):
        """Waits for its end: requests, of these failed, by kind, p50, p99 and the longest."""
        try:
            output, errors = self.process.communicate(timeout=self.seconds + 60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Broken("steady.py did not end") from None
        if self.process.returncode != 0:
            raise Broken(f"steady.py: exit {self.process.returncode}\n{errors}")
        return json.loads(output)


class H2load:
    """HTTP/1.1 over kept TLS connections by h2load, begun at once; `how` says how many and how fast. Each request's time is in its log."""

    def __init__(self, url, authorization, how, seconds, log, nice=0):
        log.unlink(missing_ok=True)
        self.url, self.seconds, self.log = url, seconds, log
        command = ["h2load", "--h1", "-t", "1", "-D", str(seconds), f"--log-file={log}", "-H", f"Authorization: {authorization}"]
        self.process = subprocess.Popen(
            [*command, *how, url],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=(lambda: step_aside(nice)) if nice else None,
        )

    def result(self):
        """Waits for its end: requests, of these refused (429), seconds, p50 and p99. Any other failure breaks the measurement."""
        try:
            output, _ = self.process.communicate(timeout=self.seconds + 60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Broken(f"h2load on {self.url} did not end") from None
        if self.process.returncode != 0 or not self.log.exists():
            raise Broken(f"h2load on {self.url}: exit {self.process.returncode}\n{output}")
        rows = [line.split("\t") for line in self.log.read_text().splitlines()]
        times = [int(row[2]) / 1e3 for row in rows]
        status = [row[1] for row in rows]
        wrong = {code: status.count(code) for code in set(status) - {"200", "429"}}
        if wrong or not rows:
            raise Broken(f"h2load on {self.url}: {len(rows)} requests, statuses {wrong}\n{output}")
        percentiles = {f"p{share}_ms": table.percentile(times, share / 100) for share in (50, 99)}
        return {"requests": len(rows), "refused": status.count("429"), "seconds": self.seconds} | percentiles


def ab(url, authorization, connections, seconds, core, directory):
    """A new plain connection for each request, as sq wants it; wrk cannot do that unless the server says `close`."""
    percentiles = directory / "ab.csv"
    # -n after -t, which sets it to 50,000: at most so many requests, whatever the machine.
    command = ["ab", "-q", "-t", str(seconds), "-n", "1000000", "-c", str(connections), "-e", percentiles]
    done = _run([*command, "-H", f"Authorization: {authorization}", url], seconds, core)
    values = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    if done.returncode != 0 or "Non-2xx responses" in values or values.get("Failed requests", "1").strip() != "0":
        raise Broken(f"ab on {url}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    shares = dict(line.split(",") for line in percentiles.read_text().splitlines()[1:])
    requests, elapsed = int(values["Complete requests"]), float(values["Time taken for tests"].split()[0])
    return {"requests": requests, "seconds": elapsed, "p50_ms": float(shares["50"]), "p99_ms": float(shares["99"])}
