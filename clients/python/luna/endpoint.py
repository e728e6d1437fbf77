"""Where the daemon listens when nobody said so."""

import os
import stat
import tempfile

_SYSTEM = "/run/luna/luna.sock"
_FALLBACK = "tcp://127.0.0.1:19283"


def _is_socket(path):
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _user_socket():
    if os.geteuid() == 0:
        return _SYSTEM
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return os.path.join(runtime, "luna", "luna.sock")
    return os.path.join(tempfile.gettempdir(), f"luna-{os.geteuid()}", "luna.sock")


def find(endpoint=None):
    """The endpoint given, $LUNA_ENDPOINT, the user's socket, the system's, or loopback TCP."""
    chosen = endpoint or os.environ.get("LUNA_ENDPOINT")
    if not chosen:
        sockets = [path for path in (_user_socket(), _SYSTEM) if _is_socket(path)]
        chosen = f"ipc://{sockets[0]}" if sockets else _FALLBACK
    if not chosen.startswith(("tcp://", "ipc://")):
        raise ValueError(f'endpoint "{chosen}" is neither tcp://HOST:PORT nor ipc://PATH')
    return chosen
