"""HAProxy and nginx, started with the configurations in templates/ to do the work of sq-agent's proxy."""

import json
import os
import socket
import string
import subprocess
import time
from pathlib import Path

from .agent import free_port
from .host import Broken, end, family, run

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"

# Debian packages, and a file by which to see that each is there.
PACKAGES = {
    "haproxy": "/usr/sbin/haproxy",
    "nginx": "/usr/sbin/nginx",
    "libnginx-mod-http-lua": "/usr/lib/nginx/modules/ngx_http_lua_module.so",
    "lua-resty-core": "/usr/share/lua/5.1/resty/core.lua",
    "lua-resty-lrucache": "/usr/share/lua/5.1/resty/lrucache.lua",
    "lua-cjson": f"/usr/lib/{os.uname().machine}-linux-gnu/lua/5.1/cjson.so",
    "nodejs": "/usr/bin/node",
    "openssl": "/usr/bin/openssl",
}
# Connections to one backend that are kept, where any are.
KEPT = 128


def certificate(directory):
    """A self-signed P-256 certificate, as sq-agent makes one for itself."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost"]
    run(["openssl", "req", "-x509", *kind, "-days", "2", "-keyout", key, "-out", cert])
    (directory / "both.pem").write_text(cert.read_text() + key.read_text())


class Rival:
    """A proxy in the foreground, on one core. `also` is what works for it in a process of its own."""

    def __init__(self, name, command, directory, port, cpu, also=None):
        self.name = name
        self.port = port
        self.also = also
        self.log = open(directory / f"{name}.log", "wb")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
        )

    def wait(self, patience=10):
        """Waits until it accepts connections."""
        deadline = time.monotonic() + patience
        while self.pids():
            try:
                return socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise Broken(f"{self.name} does not listen after {patience} s") from None
                time.sleep(0.01)

    def pids(self):
        """Every process of it."""
        if self.process.poll() is not None:
            raise Broken(f"{self.name} ended with exit {self.process.returncode}:\n{Path(self.log.name).read_text()[-2000:]}")
        return family(self.process.pid) + (self.also.pids() if self.also else [])

    def stop(self):
        """Ends it."""
        end(self.process)
        self.log.close()
        if self.also:
            self.also.stop()


def render(template, directory, target=None, **values):
    """Fills a template in; `$$` stands for a dollar."""
    path = directory / (target or template)
    text = string.Template((TEMPLATES / template).read_text()).substitute(directory=directory, **values)
    path.write_text(text)
    return path


def haproxy(directory, tenants, secret, cpu, keep=False):
    """HAProxy for `tenants`: {id: (port of its sq, key of its sq)}; it keeps connections to them where `keep`."""
    port = free_port()
    (directory / "keys.map").write_text("".join(f"{tenant} {key}\n" for tenant, (_, key) in tenants.items()))
    (directory / "backends.map").write_text("".join(f"{tenant} sq-{sq}\n" for tenant, (sq, _) in tenants.items()))
    backends = "".join(f"backend sq-{sq}\n    server sq 127.0.0.1:{sq}\n" for sq in ports(tenants))
    reuse = "    option http-keep-alive\n    http-reuse always" if keep else "    option http-server-close\n    http-reuse never"
    config = render("haproxy.cfg", directory, port=port, secret=secret, backends=backends, reuse=reuse)
    run(["haproxy", "-c", "-f", config])
    return Rival("haproxy", ["haproxy", "-db", "-f", config], directory, port, cpu)


def nginx_config(directory, port, tenants, secret, keep=False):
    """Writes the configuration of nginx with Lua."""
    enabled = sorted(Path("/etc/nginx/modules-enabled").glob("*-http-ndk.conf")) + sorted(
        Path("/etc/nginx/modules-enabled").glob("*-http-lua.conf")
    )
    return render(
        "nginx.conf",
        directory,
        port=port,
        secret=secret,
        templates=TEMPLATES,
        modules="\n".join(f"include {path};" for path in enabled),
        upstreams=upstreams(tenants, keep),
        connection="" if keep else "close",
        backends="\n".join(f'        "{tenant}" sq-{sq};' for tenant, (sq, _) in tenants.items()),
        keys="\n".join(f'        "{tenant}" {key};' for tenant, (_, key) in tenants.items()),
    )


def nginx(directory, tenants, secret, cpu, keep=False):
    """nginx with Lua, for the same."""
    port = free_port()
    config = nginx_config(directory, port, tenants, secret, keep)
    # `-e`, as nginx opens its log before it reads its configuration.
    command = ["nginx", "-e", directory / "nginx-error.log", "-c", config]
    run([*command, "-t"])
    return Rival("nginx", command, directory, port, cpu)


def nginx_auth(directory, tenants, secret, cpu, keep=False):
    """nginx that asks a service in Node at each request (auth_request), for the same."""
    port, auth = free_port(), free_port()
    table = directory / "auth.json"
    table.write_text(json.dumps({tenant: [f"sq-{sq}", key] for tenant, (sq, key) in tenants.items()}))
    node = Rival("auth", ["node", TEMPLATES / "auth.js", str(auth), secret, table], directory, auth, cpu)
    node.wait()
    connection = "" if keep else "close"
    config = render("nginx-auth.conf", directory, port=port, auth=auth, upstreams=upstreams(tenants, keep), connection=connection)
    command = ["nginx", "-e", directory / "nginx-auth-error.log", "-c", config]
    run([*command, "-t"])
    return Rival("nginx-auth", command, directory, port, cpu, also=node)


def ports(tenants):
    """Ports of their instances, each once."""
    return sorted({sq for sq, _ in tenants.values()})


def upstreams(tenants, keep):
    """Where nginx sends what it has let in."""
    kept = f" keepalive {KEPT}; keepalive_requests 100000000;" if keep else ""
    return "".join(f"    upstream sq-{sq} {{ server 127.0.0.1:{sq};{kept} }}\n" for sq in ports(tenants))
