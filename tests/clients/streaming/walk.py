"""Walks through exec, attach and port-forward with Kubernetes' Python client; prints a line for each thing tried.

    walk.py PROTOCOL SERVER POD COMMANDS LINES TERMINAL

COMMANDS, LINES and TERMINAL are containers of the pod, which tests/conformance/streaming.sh describes.
"""

import hashlib
import json
import os
import socket
import sys
import time
import traceback

from kubernetes import client
from kubernetes.stream import portforward, stream
from kubernetes.stream.ws_client import ERROR_CHANNEL, RESIZE_CHANNEL, STDIN_CHANNEL

PROTOCOL, SERVER, POD, COMMANDS, LINES, TERMINAL = sys.argv[1:]
HALF_CLOSES = PROTOCOL == "v5.channel.k8s.io"
# How long anything may take, in seconds.
TIME = 30
# For a shell.
AWAIT_SIZE = 'until [ "$(stty size 2>/dev/null)" = "$size" ]; do sleep 0.01; done; echo is "$size"'


def api(**headers):
    core = client.CoreV1Api(client.ApiClient(client.Configuration(host=SERVER)))
    core.api_client.default_headers.update(headers)
    return core


commands = api(**{"sec-websocket-protocol": PROTOCOL})
# Port-forward has no v5: what the client offers by itself is tried.
ports = api()


class Session:
    """An exec, or an attach, and all that came from it until now."""

    def __init__(self, method, container, **wanted):
        wanted = {"stdin": False, "stdout": True, "stderr": True, "tty": False} | wanted
        self.socket = stream(method, POD, "any", container=container, binary=True, _preload_content=False, **wanted)
        self.socket.sock.settimeout(TIME)
        self.out = self.err = b""
        assert self.socket.subprotocol == PROTOCOL, self.socket.subprotocol

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def read(self, until):
        """Reads until something holds."""
        end = time.monotonic() + TIME
        while not until():
            assert time.monotonic() < end, f"out of time, after {self.out[-100:]} {self.err[-100:]}"
            self.socket.update(timeout=1)
            self.take()

    def take(self):
        """Takes what has come."""
        self.out += self.socket.read_stdout(timeout=0)
        self.err += self.socket.read_stderr(timeout=0)

    def expect(self, text):
        """Reads until a text was in the output."""
        self.read(lambda: text in self.out or not self.socket.is_open())
        same(text in self.out, True, f"{text} in {self.out}")

    def end(self):
        """Reads to the end; how it ended, and the exit code if there is one."""
        self.read(lambda: not self.socket.is_open())
        # The last take may have met the end while it looked for more.
        self.take()
        status = json.loads(self.socket.peek_channel(ERROR_CHANNEL))
        coded = status["status"] == "Success" or status["reason"] == "NonZeroExitCode"
        return status["status"], self.socket.returncode if coded else None

    def resize(self, width, height):
        self.socket.write_channel(RESIZE_CHANNEL, json.dumps({"Width": width, "Height": height}))


def execute(*command, **wanted):
    return Session(commands.connect_get_namespaced_pod_exec, COMMANDS, command=list(command), **wanted)


def attach(container, **wanted):
    return Session(commands.connect_get_namespaced_pod_attach, container, stdin=True, **wanted)


def forward(*numbers):
    names = ",".join(map(str, numbers))
    forwarded = portforward(ports.connect_get_namespaced_pod_portforward, POD, "any", ports=names)
    for port in numbers:
        forwarded.socket(port).settimeout(TIME)
    return forwarded


def same(found, wanted, what=""):
    assert found == wanted, f"{found!r} instead of {wanted!r} {what}"


def output_and_success():
    with execute("sh", "-c", "echo out; echo err >&2") as session:
        same(session.end(), ("Success", 0))
        same((session.out, session.err), (b"out\n", b"err\n"))


def exit_codes():
    for code in [1, 7, 255]:
        with execute("sh", "-c", f"exit {code}") as session:
            same(session.end(), ("Failure", code))


def no_such_program():
    with execute("no-such-program") as session:
        same(session.end(), ("Failure", None))


def text_and_bytes_as_input():
    with execute("head", "-c", "12", stdin=True) as session:
        session.socket.write_stdin("text, ")
        session.socket.write_stdin(b"bytes\n")
        same(session.end(), ("Success", 0))
        same(session.out, b"text, bytes\n")


def much_input():
    data = os.urandom(4 << 20)
    command = "sha256sum" if HALF_CLOSES else f"head -c {len(data)} | sha256sum"
    with execute("sh", "-c", command, stdin=True) as session:
        for start in range(0, len(data), 100_000):
            session.socket.write_stdin(data[start : start + 100_000])
        session.socket.close_channel(STDIN_CHANNEL)
        same(session.end(), ("Success", 0))
        same(session.out.split()[0].decode(), hashlib.sha256(data).hexdigest())


def much_output():
    # Not all of the file: the client's time grows with the square.
    part = f"head -c {8 << 20} /random"
    with execute("sh", "-c", f"{part}; exit 3") as session, execute("sh", "-c", f"{part} | sha256sum") as wanted:
        same(session.end(), ("Failure", 3))
        same(wanted.end(), ("Success", 0))
        same(len(session.out), 8 << 20)
        same(hashlib.sha256(session.out).hexdigest(), wanted.out.split()[0].decode())


def terminal_sizes():
    script = f'for size in "43 132" "24 80"; do {AWAIT_SIZE}; done; exit 5'
    with execute("sh", "-c", script, stdin=True, tty=True) as session:
        session.resize(132, 43)
        session.expect(b"is 43 132\r\n")
        session.resize(80, 24)
        same(session.end(), ("Failure", 5))
        same(session.out, b"is 43 132\r\nis 24 80\r\n")


def attach_again_and_to_the_end():
    for word in [b"one", b"two"]:
        with attach(LINES) as session:
            session.socket.write_stdin(word + b"\n")
            session.expect(b"got " + word + b"\n")
            same(session.err, b"")
    with attach(LINES) as session:
        session.socket.write_stdin(b"end\n")
        same(session.end(), ("Failure", 7))
        same(session.err, b"the end\n")


def attach_to_a_terminal():
    with attach(TERMINAL, tty=True) as session:
        for width, height in [(99, 33), (101, 37)]:
            session.resize(width, height)
            session.socket.write_stdin(f'size="{height} {width}"; {AWAIT_SIZE}\n')
            session.expect(f"\nis {height} {width}\r\n".encode())


def get(connection):
    """Has a page from a web server over a forwarded connection."""
    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    page = b"".join(iter(lambda: connection.recv(65536), b""))
    same(b"200 OK" in page and b"nginx" in page, True, page)


def connections_at_once():
    forwarded = [forward(80) for _ in range(5)]
    for one in reversed(forwarded):
        get(one.socket(80))
        same(one.error(80), None)


def refused_beside_good():
    forwarded = forward(81, 80)
    same(forwarded.socket(81).recv(1), b"")
    same("81" in forwarded.error(81), True, forwarded.error(81))
    get(forwarded.socket(80))
    same(forwarded.error(80), None)


def main():
    for step in [
        output_and_success,
        exit_codes,
        no_such_program,
        text_and_bytes_as_input,
        much_input,
        much_output,
        terminal_sizes,
        attach_again_and_to_the_end,
        attach_to_a_terminal,
        connections_at_once,
        refused_beside_good,
    ]:
        name = step.__name__.replace("_", " ")
        try:
            step()
            print(f"passed {name}")
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
            print(f"FAILED {name}: {type(error).__name__}, line {line}: {str(error)[:300]}")


main()
