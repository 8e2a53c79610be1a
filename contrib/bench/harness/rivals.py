"""HAProxy and nginx, started with the configurations in templates/ to do the work of sq-agent's proxy."""

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
    "openssl": "/usr/bin/openssl",
}


def certificate(directory):
    """A self-signed P-256 certificate, as sq-agent makes one for itself."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost"]
    run(["openssl", "req", "-x509", *kind, "-days", "2", "-keyout", key, "-out", cert])
    (directory / "both.pem").write_text(cert.read_text() + key.read_text())


class Rival:
    """A proxy in the foreground, on one core."""

    def __init__(self, name, command, directory, port, cpu):
        self.name = name
        self.port = port
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
        return family(self.process.pid)

    def stop(self):
        """Ends it."""
        end(self.process)
        self.log.close()


def render(template, directory, target=None, **values):
    """Fills a template in; `$$` stands for a dollar."""
    path = directory / (target or template)
    text = string.Template((TEMPLATES / template).read_text()).substitute(directory=directory, **values)
    path.write_text(text)
    return path


def haproxy(directory, tenants, secret, cpu):
    """HAProxy for `tenants`: {id: (port of its sq, key of its sq)}."""
    port = free_port()
    (directory / "keys.map").write_text("".join(f"{tenant} {key}\n" for tenant, (_, key) in tenants.items()))
    (directory / "backends.map").write_text("".join(f"{tenant} sq-{sq}\n" for tenant, (sq, _) in tenants.items()))
    backends = "".join(f"backend sq-{sq}\n    server sq 127.0.0.1:{sq}\n" for sq, _ in tenants.values())
    config = render("haproxy.cfg", directory, port=port, secret=secret, backends=backends)
    run(["haproxy", "-c", "-f", config])
    return Rival("haproxy", ["haproxy", "-db", "-f", config], directory, port, cpu)


def nginx(directory, tenants, secret, cpu):
    """nginx with Lua, for the same."""
    port = free_port()
    enabled = sorted(Path("/etc/nginx/modules-enabled").glob("*-http-ndk.conf")) + sorted(
        Path("/etc/nginx/modules-enabled").glob("*-http-lua.conf")
    )
    config = render(
        "nginx.conf",
        directory,
        port=port,
        secret=secret,
        templates=TEMPLATES,
        modules="\n".join(f"include {path};" for path in enabled),
        backends="\n".join(f'        "{tenant}" 127.0.0.1:{sq};' for tenant, (sq, _) in tenants.items()),
        keys="\n".join(f'        "{tenant}" {key};' for tenant, (_, key) in tenants.items()),
    )
    # `-e`, as nginx opens its log before it reads its configuration.
    command = ["nginx", "-e", directory / "nginx-error.log", "-c", config]
    run([*command, "-t"])
    return Rival("nginx", command, directory, port, cpu)
