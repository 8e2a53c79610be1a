"""Requests at a constant rate, whatever the answers: each is due at a time, and its latency runs from then on, also where no connection was free.

A program of its own, as it must not wait for anything else: `steady.py PORT PATH AUTHORIZATIONS RATE SECONDS CONNECTIONS tls|plain`. With `tls`
connections are kept; with `plain` each request has one, as sq wants it. Prints one line of JSON.
"""

import gc
import json
import select
import socket
import ssl
import sys
import time
from collections import Counter, deque

# After the last request is due, seconds.
PATIENCE = 10


class Connection:
    """One connection, and when the request on it was due."""

    def __init__(self, port, context):
        stream = socket.create_connection(("127.0.0.1", port), timeout=10)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = context.wrap_socket(stream) if context else stream
        self.stream.setblocking(False)
        self.due = 0.0
        self.answer = b""

    def fileno(self):
        return self.stream.fileno()

    def is_idle(self):
        """Whether the other side still holds it: one that closes an idle connection fails nobody."""
        if not select.select([self], [], [], 0)[0]:
            return True
        try:
            # Its end, or what nobody asked for.
            self.stream.recv(1)
            return False
        except (ssl.SSLWantReadError, BlockingIOError):
            # A session ticket.
            return True
        except OSError:
            return False

    def read(self):
        """The status, once the answer is whole; 0 where it broke off."""
        try:
            while True:
                came = self.stream.recv(65536)
                if not came:
                    return 0
                self.answer += came
                head, end, body = self.answer.partition(b"\r\n\r\n")
                if end and len(body) >= length(head):
                    return int(head[9:12])
        except (ssl.SSLWantReadError, BlockingIOError):
            return None
        except OSError:
            return 0

    def close(self):
        self.stream.close()


def length(head):
    """Of the body."""
    at = head.lower().index(b"content-length:")
    return int(head[at + 15 :].split(b"\r\n", 1)[0])


class Load:
    """All of it."""

    def __init__(self, port, path, authorizations, connections, tls):
        end = "" if tls else "Connection: close\r\n"
        with open(authorizations) as lines:
            self.requests = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {line.strip()}\r\n{end}\r\n".encode() for line in lines]
        self.port, self.tls, self.turn = port, tls, 0
        self.context = None
        if tls:
            self.context = ssl._create_unverified_context()
            self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.most = connections
        self.idle = [Connection(port, self.context) for _ in range(connections)] if tls else []
        self.busy = []
        self.latencies, self.failed = [], Counter()

    def begin(self, due):
        """Sends a request; False where every connection is busy."""
        if len(self.busy) >= self.most:
            return False
        try:
            connection = self.idle.pop() if self.idle else Connection(self.port, self.context)
            if self.tls and not connection.is_idle():
                connection.close()
                connection = Connection(self.port, self.context)
            self.turn = (self.turn + 1) % len(self.requests)
            connection.due, connection.answer = due, b""
            connection.stream.send(self.requests[self.turn])
            self.busy.append(connection)
        except OSError as error:
            self.failed[type(error).__name__] += 1
        return True

    def end(self, connection, status):
        """An answer came, or none."""
        self.busy.remove(connection)
        if status == 200:
            self.latencies.append(time.perf_counter() - connection.due)
        else:
            self.failed[str(status) if status else "broken off"] += 1
        if status and self.tls and b"\r\nconnection: close" not in connection.answer.lower():
            self.idle.append(connection)
        else:
            connection.close()

    def run(self, rate, seconds):
        start = time.perf_counter()
        number, last, waiting = 0, int(rate * seconds), deque()
        while number < last or waiting or self.busy:
            now = time.perf_counter()
            while number < last and start + number / rate <= now:
                waiting.append(start + number / rate)
                number += 1
            while waiting and self.begin(waiting[0]):
                waiting.popleft()
            pause = start + number / rate - time.perf_counter() if number < last else start + seconds + PATIENCE - now
            if number == last and pause < 0:
                self.failed["no answer"] += len(self.busy) + len(waiting)
                break
            # To the microsecond, which epoll from here is not.
            for connection in select.select(self.busy, [], [], max(0, pause))[0]:
                status = connection.read()
                if status is not None:
                    self.end(connection, status)


def main():
    port, path, authorizations, rate, seconds, connections, kind = sys.argv[1:]
    load = Load(int(port), path, authorizations, int(connections), kind == "tls")
    # A collection in the midst of it would be measured.
    gc.freeze()
    gc.disable()
    load.run(float(rate), float(seconds))
    ordered = sorted(load.latencies)
    share = lambda part: 1e3 * ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0
    figures = {"requests": len(ordered) + sum(load.failed.values()), "failed": dict(load.failed)}
    print(json.dumps(figures | {"p50_ms": share(0.5), "p99_ms": share(0.99), "max_ms": share(1)}))


if __name__ == "__main__":
    main()
