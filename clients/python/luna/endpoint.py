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


def _is_own(folder):
    """True for a folder that only this user can have made."""
    try:
        entry = os.lstat(folder)
    except OSError:
        return False
    return (
        stat.S_ISDIR(entry.st_mode) and entry.st_uid == os.geteuid() and not entry.st_mode & 0o077
    )


def _user_socket():
    """The socket of a daemon that this user started, or None."""
    if os.geteuid() == 0:
        return _SYSTEM
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return os.path.join(runtime, "luna", "luna.sock")
    folder = os.path.join(tempfile.gettempdir(), f"luna-{os.geteuid()}")
    return os.path.join(folder, "luna.sock") if _is_own(folder) else None


def find(endpoint=None):
    """The endpoint given, $LUNA_ENDPOINT, the user's socket, the system's, or loopback TCP."""
    chosen = endpoint or os.environ.get("LUNA_ENDPOINT")
    if not chosen:
        sockets = [path for path in (_user_socket(), _SYSTEM) if path and _is_socket(path)]
        chosen = f"ipc://{sockets[0]}" if sockets else _FALLBACK
    if not chosen.startswith(("tcp://", "ipc://")):
        raise ValueError(f'endpoint "{chosen}" is neither tcp://HOST:PORT nor ipc://PATH')
    return chosen
