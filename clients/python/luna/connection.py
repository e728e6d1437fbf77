"""What both clients do to a socket and to a session of shared memory."""

import time

import zmq

from . import shared

ATTACH_SECONDS = 2.0
_ATTACH_AGAIN_SECONDS = 5.0
_LINGER_MS = 200  # for the cancel of a call that timed out just before the end
_HEARTBEAT_MS = 5000
_QUEUE_MESSAGES = 64  # of each direction, in the socket


def open_socket(context, endpoint, keys):
    """A DEALER that queues only towards a daemon that is there; without one a request waits in its
    call, where its deadline is. keys: None, or (server, public, secret) in Z85."""
    socket = context.socket(zmq.DEALER)
    try:
        socket.linger = _LINGER_MS
        socket.set_hwm(_QUEUE_MESSAGES)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if endpoint.startswith("tcp://"):
            socket.setsockopt(zmq.IPV6, 1)
            socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
        if keys is not None:
            socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = (
                key.encode() if isinstance(key, str) else key for key in keys
            )
        socket.connect(endpoint)
    except Exception:
        socket.close(linger=0)
        raise
    return socket


def keys_of(server_key, public_key, secret_key):
    """The three keys of CURVE, or None for a plain connection."""
    if server_key is None:
        return None
    if public_key is None or secret_key is None:
        raise ValueError("server_key needs public_key and secret_key")
    return server_key, public_key, secret_key


class Sharing:
    """The session of shared memory, made when a large tensor first needs it."""

    def __init__(self, endpoint, wanted):
        self._may = wanted and endpoint.startswith("ipc://")
        self._session = None
        self._again_at = 0.0

    @property
    def may_share(self):
        """True when the daemon is on this machine and sharing was not refused."""
        return self._may

    @property
    def missing(self):
        """True when it is time to ask the daemon for a session."""
        if not self._may or time.monotonic() < self._again_at:
            return False
        return self._session is None or not self._session.alive

    @property
    def session(self):
        """The Session, or None: then tensors go in frames."""
        alive = self._session is not None and self._session.alive
        return self._session if alive else None

    def postpone(self):
        """Notes an attempt, so that the next one is not at once."""
        self._again_at = time.monotonic() + _ATTACH_AGAIN_SECONDS

    def open(self, path):
        """Opens a session at the socket that the daemon named; failing is no error."""
        try:
            self._session = shared.Session(path)
        except OSError:
            self._session = None

    def close(self):
        """Ends the session."""
        if self._session is not None:
            self._session.close()
            self._session = None
