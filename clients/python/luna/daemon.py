"""The synchronous client."""

import contextlib
import threading
import time

import zmq

from . import connection, endpoint as endpoints, errors, requests
from .call import Call, LeaseLost, Steps, read_header
from .operations import Operations

DEFAULT_TIMEOUT = 120.0
DEFAULT_CONNECT_TIMEOUT = 3.0


class Daemon(Operations):
    """A connection to a daemon; see connect. It belongs to the thread that made it."""

    def __init__(
        self,
        endpoint=None,
        timeout=DEFAULT_TIMEOUT,
        *,
        connect_timeout=DEFAULT_CONNECT_TIMEOUT,
        shared_memory=True,
        server_key=None,
        public_key=None,
        secret_key=None,
    ):
        keys = connection.keys_of(server_key, public_key, secret_key)
        self.endpoint = endpoints.find(endpoint)
        self.timeout = timeout
        self.hello = None
        self._thread = threading.get_ident()
        self._sharing = connection.Sharing(self.endpoint, shared_memory)
        self._socket = connection.open_socket(zmq.Context.instance(), self.endpoint, keys)
        try:
            self.hello = self.ping(timeout=connect_timeout)
        except errors.DeadlineExceeded:
            self.close()
            raise errors.Unavailable(f"nobody answers at {self.endpoint}") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Closes the connection."""
        self._sharing.close()
        self._socket.close()

    def _run(self, request, timeout=None, priority=0, progress=None):
        if threading.get_ident() != self._thread:
            raise RuntimeError("a luna.Daemon belongs to the thread that made it: connect another")
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        if request.wants_sharing:
            self._attach()
        while True:
            session = self._sharing.session if request.wants_sharing else None
            call = Call(request, deadline - time.monotonic(), priority, progress, session)
            try:
                return self._wait(call)
            except LeaseLost:
                continue  # without it, as another request
            except (KeyboardInterrupt, errors.DeadlineExceeded):
                self._send_cancel(call)
                raise
            finally:
                call.close()

    def _converse(self, conversation, timeout=None, priority=0, progress=None):
        with contextlib.closing(conversation):
            steps = Steps(conversation, self.timeout if timeout is None else timeout)
            while not steps.over:
                try:
                    if callable(steps.now):
                        result = steps.now()
                    else:
                        shown = progress if steps.is_work else None
                        result = self._run(steps.now, steps.seconds_left(), priority, shown)
                except Exception as error:  # the conversation may know what to do
                    steps.failed(error)
                else:
                    steps.done(result)
            return steps.result

    def _wait(self, call):
        while True:
            now = time.monotonic()
            if now >= call.deadline:
                raise errors.DeadlineExceeded(f"no answer from {self.endpoint} in time")
            blocked = call.due(now) and not self._send(call, now)
            while self._socket.poll(0, zmq.POLLIN):
                header, frames = read_header(self._socket.recv_multipart())
                if header is not None and header.id == call.id and call.feed(header, frames):
                    return call.result
            until = call.deadline if blocked else call.wake_at
            wait_ms = max(0, int((until - time.monotonic()) * 1000) + 1)
            self._socket.poll(wait_ms, zmq.POLLIN | (zmq.POLLOUT if blocked else 0))

    def _send(self, call, now):
        try:
            self._socket.send_multipart(call.frames(now), zmq.NOBLOCK)
        except zmq.Again:
            return False
        call.was_sent(now)
        return True

    def _send_cancel(self, call):
        if not call.sent:
            return
        try:
            self._socket.send_multipart(call.cancel_frames(), zmq.NOBLOCK)
        except zmq.Again:
            pass  # nobody is there to hear it

    def _attach(self):
        if not self._sharing.missing:
            return
        self._sharing.postpone()
        try:
            reply = self._run(requests.attach(), connection.ATTACH_SECONDS)
        except errors.Error:
            return  # no shared memory, so frames
        self._sharing.open(reply.path)


def connect(endpoint=None, timeout=DEFAULT_TIMEOUT, **options):
    """Connects to a daemon and waits for its first answer; luna.Unavailable when there is none.

    endpoint: "tcp://HOST:PORT" or "ipc://PATH"; None: $LUNA_ENDPOINT, the user's or the system's
    socket if there is one, else tcp://127.0.0.1:19283. timeout: seconds that a call may take.
    options: connect_timeout, shared_memory, and for CURVE server_key, public_key, secret_key.
    """
    return Daemon(endpoint, timeout, **options)
