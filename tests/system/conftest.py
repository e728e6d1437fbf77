"""The real binary as users run it: a `daemon` fixture that starts one, talks to it, and checks what it leaves.

LUNA_BINARY names the binary; build/luna where it does not. Nothing here sleeps to let things happen: every
wait is for a line, an event, a state of the status or an end of a process, with a deadline.
"""

import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest
import zmq

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "clients" / "python"), str(ROOT / "tests" / "system")]

import files  # noqa: E402
import luna  # noqa: E402
from luna import luna_pb2 as pb  # noqa: E402

BINARY = ROOT / os.environ.get("LUNA_BINARY", "build/luna")
# A sanitized binary is slow to start and to compute; bars on time are for the release build.
PATIENCE = float(os.environ.get("LUNA_PATIENCE", "4" if "san" in BINARY.parent.name else "1"))


@pytest.fixture(scope="session")
def models():
    """The folder with the demo's VAE and two small text encoders."""
    return files.make_models(BINARY.parent / "tests" / "models")


def wait_until(condition, seconds, what):
    """Asks again until it holds and returns what it gave; for states that no event tells."""
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


# Below what the system gives to outgoing connections, and each only once: nobody takes a port between
# this look at it and the daemon's. Processes begin at different places.
_PORTS = itertools.cycle(range(20000, 30000))
next(itertools.islice(_PORTS, os.getpid() * 97 % 10000, None))


def free_port():
    for port in _PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def children_of(pid):
    """{pid: words of its command line} of the living children."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Events:
    """The PUB stream on a thread: everything that came, and waiting for what will."""

    def __init__(self, endpoint):
        self.seen = []  # of (topic, message)
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = 0
        self._socket.subscribe("")
        self._socket.connect(endpoint)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.is_set():
            if not self._socket.poll(50):
                continue
            topic, body = self._socket.recv_multipart()
            kind = pb.Status if topic == b"status" else pb.Event
            with self._changed:
                self.seen.append((topic.decode(), kind.FromString(body)))
                self._changed.notify_all()
        self._socket.close()

    def wait(self, condition, seconds, what):
        """The first (topic, message) for which the condition holds, from the beginning on."""
        deadline = time.monotonic() + seconds * PATIENCE
        looked = 0
        with self._changed:
            while True:
                for topic, message in self.seen[looked:]:
                    if condition(topic, message):
                        return message
                looked = len(self.seen)
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    told = [(t, m.message, m.signal) for t, m in self.seen if t != "status"][-12:]
                    pytest.fail(f"no event within {seconds} s: {what}; the last were {told}")

    def wait_topic(self, topic, seconds=10, **fields):
        """The first event of a topic whose fields have these values."""
        return self.wait(lambda t, m: t == topic and all(getattr(m, k) == v for k, v in fields.items()),
                         seconds, f"{topic} {fields}")

    def of(self, topic, **fields):
        with self._changed:
            return [m for t, m in self.seen if t == topic and all(getattr(m, k) == v for k, v in fields.items())]

    def close(self):
        self._stop.set()
        self._thread.join()


class Raw:
    """A client with nothing but pyzmq: sends what it is told to, right or wrong."""

    def __init__(self, endpoint, kind=zmq.DEALER):
        self.socket = zmq.Context.instance().socket(kind)
        self.socket.linger = 0
        self.socket.set_hwm(0)
        self.socket.connect(endpoint)

    def close(self):
        self.socket.close()

    def send(self, *frames):
        self.socket.send_multipart([frame.SerializeToString() if hasattr(frame, "SerializeToString") else frame
                                    for frame in frames])

    def receive(self, seconds=20):
        """(header, frames behind it) of the next message."""
        assert self.socket.poll(seconds * 1000 * PATIENCE), f"no answer within {seconds} s"
        head, *rest = self.socket.recv_multipart()
        return pb.Header.FromString(head), rest

    def is_silent(self, milliseconds=200):
        return not self.socket.poll(milliseconds)

    def ask(self, header, body=b"", *payloads, seconds=20):
        """One exchange; returns the final answer's header and frames."""
        self.send(header, body, *payloads)
        while True:
            answer, rest = self.receive(seconds)
            if answer.kind == pb.REPLY and answer.id == header.id:
                return answer, rest


def request(operation, tensors=(), **fields):
    """A header of a good request; tensors: (name, dtype, dims, count of bytes)."""
    fields.setdefault("id", os.urandom(16))
    fields.setdefault("major", 1)
    fields.setdefault("kind", pb.REQUEST)
    header = pb.Header(operation=operation, **fields)
    for name, dtype, dims, count in tensors:
        header.tensors.add(name=name, dtype=dtype, dims=dims, bytes=count)
    return header


def text_request(operation, text, name="prompt", **fields):
    """(header, payload) of a request about one text."""
    data = text if isinstance(text, bytes) else text.encode()
    return request(operation, [(name, pb.U8, [len(data)], len(data))], **fields), data


def latent_request(latent, **fields):
    """(header, payload) of a decode."""
    return request(pb.DECODE_LATENT, [("latent", pb.F32, latent.shape, latent.nbytes)], **fields), latent.tobytes()


CONFIG = """[service]
log_level = debug
[listen]
requests = tcp://127.0.0.1:0, ipc://{folder}/luna.sock
page =
events = tcp://127.0.0.1:{port}
[models]
directories = {models}
[model demo]
files = vae.safetensors, clip_l.safetensors, clip_g.safetensors
"""


class Daemon:
    """A running `luna serve`, and everything by which a test reaches it."""

    def __init__(self, folder, models, settings=(), extra="", environment=(), config=None):
        self.folder = folder
        self.config_path = folder / "luna.conf"
        self.log_path = folder / "luna.log"
        self.events_endpoint = f"tcp://127.0.0.1:{free_port()}"
        text = (config or CONFIG).format(folder=folder, models=models, port=self.events_endpoint.rpartition(":")[2])
        self.config_path.write_text(text + extra)
        settings = dict(settings)
        if "conditioning_mb" not in text + extra:  # who asks twice is about the second answer as well
            settings.setdefault("cache.conditioning_mb", 0)
        self.environment = dict(os.environ, XDG_RUNTIME_DIR=str(folder), LUNA_ENDPOINT=f"ipc://{folder}/luna.sock",
                                **dict(environment))
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        self.started = time.monotonic()
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([BINARY, "serve", "-c", self.config_path, *words],
                                            env=self.environment, stdin=subprocess.DEVNULL,
                                            stdout=subprocess.PIPE, stderr=log)
        self.pid = self.process.pid
        self.ready_seconds = None
        self.endpoints = []
        self._open = []
        self._events = None
        self._pids = set()

    # ---- life

    def wait_ready(self, seconds=10):
        selector = zmq.Poller()
        selector.register(self.process.stdout, zmq.POLLIN)
        assert selector.poll(seconds * 1000 * PATIENCE), f"no line within {seconds} s:\n{self.read_log()}"
        words = self.process.stdout.readline().decode().split()
        self.ready_seconds = time.monotonic() - self.started
        assert words[:2] == ["luna:", "ready"], f"{words}\n{self.read_log()}"
        self.endpoints = words[2:]
        self._pids |= set(children_of(self.pid))
        return self

    @property
    def ipc(self):
        return next(endpoint for endpoint in self.endpoints if endpoint.startswith("ipc://"))

    @property
    def tcp(self):
        return next(endpoint for endpoint in self.endpoints if endpoint.startswith("tcp://"))

    def child(self, word):
        """The pid of the core ("core-process") or the executor ("executor-process") of now, or None."""
        found = [pid for pid, words in children_of(self.pid).items() if word in words[:2]]
        self._pids |= set(found)
        return found[0] if found else None

    @property
    def core_pid(self):
        return self.child("core-process")

    @property
    def executor_pid(self):
        return self.child("executor-process")

    def kill_child(self, word, number=signal.SIGKILL):
        """Sends a signal to a child, waits for its death if it is deadly; returns its pid."""
        pid = wait_until(lambda: self.child(word), 10, f"{word} runs")
        os.kill(pid, number)
        if number == signal.SIGKILL:
            wait_until(lambda: not is_alive(pid), 5, f"{word} died")
        return pid

    def read_log(self):
        return self.log_path.read_text(errors="replace")[-6000:]

    def close_clients(self):
        while self._open:
            self._open.pop().close()
        if self._events is not None:
            self._events.close()
            self._events = None

    def wait_end(self, seconds=40):
        """Waits for the daemon's end; returns its status."""
        try:
            return self.process.wait(seconds * PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the daemon did not end within {seconds} s:\n{self.read_log()}")

    def stop(self):
        """Ends it if it runs, and checks that it ended well and left nothing behind."""
        self.close_clients()
        if self.process.poll() is None:
            self._pids |= set(children_of(self.pid))
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.wait_end()
        finally:
            self.kill()
        assert status == 0, f"the daemon ended with {status}:\n{self.read_log()}"
        log = self.log_path.read_text(errors="replace")
        found = min((at for at in (log.find("Sanitizer"), log.find("runtime error:")) if at >= 0), default=None)
        assert found is None, log[max(0, found - 200) : found + 6000]
        self.check_nothing_left()

    def check_nothing_left(self):
        left = [pid for pid in self._pids if is_alive(pid)]
        assert not left, f"processes left behind: {left}"
        sockets = [str(path) for path in self.folder.rglob("*") if path.is_socket()]
        assert not sockets, f"sockets left behind: {sockets}"
        for runtime in (pathlib.Path("/run/luna"), self.folder / "luna"):
            assert not (runtime / f"private-{self.pid}").exists(), f"{runtime}/private-{self.pid} left behind"

    def kill(self):
        """The end of a test that went wrong: nothing of ours stays, gently or not."""
        if self.process.poll() is None:
            for pid in [self.pid, *children_of(self.pid)]:
                os.kill(pid, signal.SIGKILL)
            self.process.wait()
        self.process.stdout.close()

    # ---- talk

    def cli(self, *words, stdin=None, environment=(), seconds=120):
        """Runs the command; returns what subprocess.run returns, stdout and stderr in bytes."""
        return subprocess.run([BINARY, *map(str, words)], env={**self.environment, **dict(environment)},
                              input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
                              capture_output=True, timeout=seconds * PATIENCE)

    def cli_json(self, *words):
        """Runs the command, which has to succeed, with --json; returns the document."""
        done = self.cli(*words, "--json")
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def connect(self, endpoint=None, **options):
        """A luna.Daemon, closed at the end."""
        daemon = luna.connect(endpoint or self.ipc, connect_timeout=10 * PATIENCE, **options)
        self._open.append(daemon)
        return daemon

    def raw(self, kind=zmq.DEALER, endpoint=None):
        """A Raw, closed at the end."""
        client = Raw(endpoint or self.ipc, kind)
        self._open.append(client)
        return client

    def status(self):
        client = Raw(self.ipc)
        try:
            answer, rest = client.ask(request(pb.STATUS))
            assert answer.code == pb.OK, answer.message
            return pb.Status.FromString(rest[0])
        finally:
            client.close()

    def service(self, operation, model="demo"):
        """A service of the status, or None."""
        return next((s for s in self.status().services if (s.operation, s.model) == (operation, model)), None)

    def wait_workers(self, operation, count, seconds=10, model="demo"):
        """Waits until a service has so many workers."""
        def has():
            service = self.service(operation, model)
            return (service.workers if service else 0) == count
        wait_until(has, seconds, f"{count} workers of {operation}")

    @property
    def events(self):
        """The stream of events; the first use returns once the stream is known to be there."""
        if self._events is None:
            self._events = Events(self.events_endpoint)
            self._events.wait(lambda topic, _: topic == "status", 10, "the first status")
        return self._events

    def is_serving(self):
        """Fails unless the daemon answers a Ping and a Tokenize."""
        client = Raw(self.ipc)
        try:
            assert client.ask(request(pb.PING), seconds=5)[0].code == pb.OK
            header, data = text_request(pb.TOKENIZE, "a cat")
            answer, rest = client.ask(header, b"", data, seconds=30)
            assert answer.code == pb.OK, answer.message
        finally:
            client.close()
        return True


@pytest.fixture
def make_daemon(models):
    """Starts daemons: make_daemon(settings={"scaling.idle_timeout_s": 1}, extra="[model x]..."), all of them
    checked and ended at the end; with ready=False the caller waits."""
    made = []
    folders = []

    def make(ready=True, models=models, **options):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="luna-s-"))
        folders.append(folder)
        daemon = Daemon(folder, models, **options)
        made.append(daemon)
        return daemon.wait_ready() if ready else daemon

    yield make
    problems = []
    for daemon in made:
        try:
            daemon.stop()
        except BaseException as error:  # the others are stopped all the same
            problems.append(error)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    if problems:
        raise problems[0]


@pytest.fixture
def daemon(make_daemon):
    """A daemon with the defaults."""
    return make_daemon()


@pytest.fixture(scope="module")
def shared(models):
    """One daemon for a whole file of tests that leave it as they found it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="luna-s-"))
    running = Daemon(folder, models).wait_ready()
    yield running
    try:
        running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
