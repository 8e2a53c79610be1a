"""All that is compared, started side by side on the same tenants and the same sq: sq-agent's proxy, HAProxy, nginx with Lua, nginx with auth_request."""

import http.client
import ssl
from contextlib import contextmanager

from . import agent, host, jwt, load, rivals
from .agent import TARGET

TENANTS = ["ada@example.com", "bob@example.com"]
# It has a large phext, and no guard: the others have none either.
LARGE = "large@example.com"
# Different tokens a tenant: a busy host sees many, each many times.
TOKENS = 32
TEXT = {tenant: f"A small scroll of {tenant}.\n" * 4 for tenant in [*TENANTS, LARGE]}
PATH = "/api/v2/select?p=bench&c=1.1.1/1.1.1/1.1.1"
# ab asks in HTTP/1.0, and sq takes that into the last value of the query: let it be one that nobody reads.
PATH_DIRECT = PATH + "&end=1"

OURS, HAPROXY, LUA, AUTH = "sq-agent", "HAProxy", "nginx + Lua", "nginx auth_request"
DIRECT = "sq direct"


class Target:
    """One of those that are compared."""

    def __init__(self, name, pids, port):
        self.name, self.pids, self.port = name, pids, port


class Stage:
    """What was started."""

    def __init__(self, under_test, tenants, targets, haproxy, nginx, directory, load_core):
        self.agent, self.tenants, self.targets = under_test, tenants, targets
        self.haproxy, self.nginx = haproxy, nginx
        self.directory, self.core = directory, load_core
        self.secret = under_test.secret
        self.everybody = self.authorizations("everybody", TENANTS, TOKENS)
        self.large = self.authorizations("large", [LARGE], 1)
        # What sq itself asks for.
        self.port, key = tenants[TENANTS[0]]
        self.key = f"Bearer {key}"
        (directory / "direct").write_text(f"{self.key}\n")

    def authorizations(self, name, tenants, count):
        """A file with the header's value of `count` tokens of each of `tenants`."""
        tokens = [jwt.mint(self.secret, tenant, number) for number in range(count) for tenant in tenants]
        path = self.directory / name
        path.write_text("".join(f"Bearer {token}\n" for token in tokens))
        return path

    def wrk(self, target, connections, seconds, path=PATH, authorizations=None, body=None):
        """Full load through a proxy."""
        url = f"https://127.0.0.1:{target.port}{path}"
        return load.wrk(url, authorizations or self.everybody, connections, seconds, self.core, body)

    def steady(self, target, rate, seconds, connections=64):
        """A constant rate through a proxy, or to sq where `target` is None."""
        if target is None:
            direct = self.directory / "direct"
            return load.Steady(self.port, PATH, direct, rate, seconds, self.core, tls=False, connections=connections)
        return load.Steady(target.port, PATH, self.everybody, rate, seconds, self.core, connections=connections)

    def direct(self, connections, seconds):
        """Full load without a proxy."""
        url = f"http://127.0.0.1:{self.port}{PATH_DIRECT}"
        return load.ab(url, self.key, connections, seconds, self.core, self.directory)


@contextmanager
def running(program, sq, *, keep=False, others=(), only=None):
    """A stage; ended afterwards. With `keep`, what stands behind is no sq, and connections to it are kept by all that can. `others` are tenants
    that are not served. Started are `only` these, where that is given."""
    proxy_core, load_core = host.cores()
    keys = {LARGE: 'durability = "off"'} | {tenant: "suspended = true" for tenant in others}
    served = [*TENANTS, LARGE]
    with host.scratch() as directory:
        # The agent is started on the proxies' core, so that its proxy sizes itself for one core as the others do; sq goes where the load is.
        under_test = agent.Agent(program, sq, directory, served, cpu=proxy_core, isolation="off", keys=keys, unserved=others)
        started = [under_test]
        try:
            status, _ = under_test.wait_ready()
            tenants = {}
            for tenant in status["tenants"]:
                if tenant["id"] in served:
                    host.pin(tenant["pid"], load_core)
                    tenants[tenant["id"]] = (tenant["port"], agent.instance_key(tenant["pid"]))
            routed = tenants | {tenant: tenants[TENANTS[0]] for tenant in others}
            rivals.certificate(directory)
            targets = [Target(OURS, lambda: [under_test.proxy_pid()], under_test.port)]
            for name, begin in ((HAPROXY, rivals.haproxy), (LUA, rivals.nginx), (AUTH, rivals.nginx_auth)):
                if only is None or name in only:
                    rival = begin(directory, routed, under_test.secret, proxy_core, keep)
                    started.append(rival)
                    rival.wait()
                    targets.append(Target(name, rival.pids, rival.port))
            for target in targets:
                check(target.port, under_test.secret, stores=not keep)
            haproxy, nginx = started[1:3]
            yield Stage(under_test, routed, targets, haproxy, nginx, directory, load_core)
        finally:
            for each in reversed(started):
                each.stop()


def fixed_server():
    """The program that stands in sq's place where connections are kept."""
    program = TARGET / "tmp" / "fixed"
    source = rivals.TEMPLATES / "fixed.rs"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        host.run(["rustc", "--edition", "2024", "-O", "-o", program, source])
    return program


def check(port, secret, stores):
    """Each proxy must do its work before its speed means anything: right text for each tenant, none without a good token."""
    for tenant in TEXT:
        token = jwt.mint(secret, tenant)
        if stores:
            ask(port, "POST", PATH.replace("select", "update"), token, TEXT[tenant].encode())
        status, body = ask(port, "GET", PATH, token)
        if status != 200 or stores and body.decode() != TEXT[tenant]:
            raise host.Broken(f"port {port}: {tenant} gets {status} {body!r}")
    head, claims, signature = token.split(".")
    swapped = ("B" if signature[9] == "A" else "A").join([signature[:9], signature[10:]])
    expired = jwt.mint(secret, tenant, lifetime=-3600)
    for bad in (jwt.mint("x" * 48, tenant), f"{head}.{claims}.{swapped}", expired, jwt.mint(secret, "stranger")):
        status, _ = ask(port, "GET", PATH, bad)
        if status not in (401, 403, 404):
            raise host.Broken(f"port {port}: a bad token gets {status}")


def ask(port, method, path, token, body=None):
    """One request over TLS 1.3."""
    context = ssl._create_unverified_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
