"""One exception for every status code that the daemon may answer; all of them are Error."""

from . import luna_pb2 as pb


class Error(Exception):
    """What the daemon answered, or what kept it from answering."""

    code = None  # a number of luna_pb2.Code
    name = None  # "INVALID_ARGUMENT"

    def __init__(self, message, retry_after_ms=0):
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms  # of the refusal; 0: coming back later does not help


class Cancelled(Error):
    """The request was taken back."""


class InvalidArgument(Error):
    """The request can never work, whatever the daemon's state."""


class DeadlineExceeded(Error):
    """Time ran out before an answer was ready."""


class NotFound(Error):
    """A name or hash that the daemon does not know."""


class PermissionDenied(Error):
    """The caller is known but may not do this."""


class ResourceExhausted(Error):
    """A bound is reached."""


class FailedPrecondition(Error):
    """The daemon's state forbids it until somebody changes that."""


class Unimplemented(Error):
    """The daemon cannot do this yet."""


class Internal(Error):
    """The daemon's fault, or its machine's."""


class Unavailable(Error):
    """Nobody can serve it just now; the same request may work later."""


class Unauthenticated(Error):
    """The caller is unknown."""


def _class_name(name):
    return "".join(word.capitalize() for word in name.split("_"))


_BY_CODE = {}
for _name, _number in pb.Code.items():
    if _number != pb.OK:
        _class = globals()[_class_name(_name)]
        _class.code, _class.name = _number, _name
        _BY_CODE[_number] = _class


def from_code(code, message, retry_after_ms=0):
    """The exception for a code of luna_pb2.Code."""
    return _BY_CODE.get(code, Internal)(message, retry_after_ms)
