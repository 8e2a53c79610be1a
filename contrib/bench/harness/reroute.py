"""Routes changed under load, in each proxy's own way: what fails, and how long it takes.

The routes that change are those of tenants that ask nothing meanwhile; the load is that of others.
"""

import datetime
import os
import signal
import socket
import time

from . import jwt, rivals
from .host import Broken
from .stage import HAPROXY, LUA, OURS, PATH, TENANTS, TEXT, ask

# Commands to HAProxy that are sent at once.
BATCH = 50
PATIENCE = 120


def measure(stage, others, rate, seconds):
    """{proxy: (seconds until the last route was changed, figures of the load)}."""
    ways = {OURS: ours, HAPROXY: haproxy, LUA: nginx}
    measured = {}
    for target in stage.targets:
        load = stage.steady(target, rate, seconds)
        time.sleep(seconds / 4)
        began = time.monotonic()
        ways[target.name](stage, target, others)
        taken = time.monotonic() - began
        measured[target.name] = (taken, load.result())
    return measured


def ours(stage, target, others):
    """One edit of tenants.toml: all tokens of `others` are revoked. They are suspended (403); then their tokens are none any more (401)."""
    token = jwt.mint(stage.secret, others[-1])
    until(lambda: ask(target.port, "GET", PATH, token)[0] == 403)
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=1)
    for tenant in others:
        stage.agent.keys[tenant] = f"suspended = true\ntokens_valid_after = {soon:%Y-%m-%dT%H:%M:%SZ}"
    stage.agent.save()
    until(lambda: ask(target.port, "GET", PATH, token)[0] == 401)


def haproxy(stage, target, others):
    """Two commands a route, on one connection to its socket: its instance's key, and its backend."""
    port, key = stage.tenants[TENANTS[1]]
    values = {"keys.map": key, "backends.map": f"sq-{port}"}
    commands = [f"set map {stage.directory / name} {tenant} {value}" for tenant in others for name, value in values.items()]
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(PATIENCE)
        stream.connect(str(stage.directory / "haproxy.sock"))
        answers = Answers(stream)
        stream.sendall(b"prompt\n")
        answers.take(1)
        for at in range(0, len(commands), BATCH):
            batch = commands[at : at + BATCH]
            stream.sendall("".join(f"{command}\n" for command in batch).encode())
            answers.take(len(batch))
    if moved(stage, target, others) is False:
        raise Broken("HAProxy did not take the commands")


class Answers:
    """What HAProxy says to commands: nothing, and then its prompt."""

    def __init__(self, stream):
        self.stream, self.text = stream, b""

    def take(self, count):
        while self.text.count(b"\n> ") < count:
            came = self.stream.recv(65536)
            if not came:
                raise Broken("HAProxy closed its socket")
            self.text += came
        if self.text.replace(b"\n> ", b"").strip():
            raise Broken(f"HAProxy says {self.text[:200]!r}")
        self.text = b""


def nginx(stage, target, others):
    """A configuration with other values, and a reload."""
    others = dict.fromkeys(others, stage.tenants[TENANTS[1]])
    rivals.nginx_config(stage.directory, target.port, stage.tenants | others, stage.secret)
    os.kill(stage.nginx.process.pid, signal.SIGHUP)
    until(lambda: moved(stage, target, list(others)))


def moved(stage, target, others):
    """Whether the last of them is now sent where the second tenant is."""
    token = jwt.mint(stage.secret, others[-1])
    return ask(target.port, "GET", PATH, token)[1].decode() == TEXT[TENANTS[1]]


def until(true):
    """Waits until it is."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise Broken("a changed route did not come into force")
        time.sleep(0.005)
