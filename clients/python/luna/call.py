"""One request from its first sending to its one answer, without any input or output of its own.

The daemon knows a request by its id, so sending it again is always safe: after a lost connection, a
restarted daemon, or a refusal that asked to wait. Whoever drives a Call (daemon.py, aio.py) sends
frames() when send_at has come, hands every message to feed(), and gives up at the deadline.
"""

import os
import time

from google.protobuf.message import DecodeError

from . import errors
from . import luna_pb2 as pb
from .arrays import DeviceTensor, Tensor

MAJOR = 1
TENSORS_MAX = 8
SHARED_BYTES_MIN = 262144  # tensors below travel better in frames
_RESEND_SECONDS_FIRST = 1.0
_RESEND_SECONDS_MAX = 4.0
_DEVICE_ALIGNMENT = 256
_LEASE_WORDS = "device lease"  # with which the daemon says that it is gone
_WORK = (pb.ENCODE_TEXT, pb.ENCODE_TOKENS)
_RETRYABLE = (pb.RESOURCE_EXHAUSTED, pb.UNAVAILABLE)


class LeaseLost(Exception):
    """The daemon does not know the device memory any more that the request names: nothing was done, and
    the request is to be asked again, as another one."""


class Request:
    """What to ask for: the operation, its body and tensors, the sizes that answers may have."""

    def __init__(
        self,
        operation,
        body=None,
        tensors=(),
        rooms=(),
        model=None,
        reply=pb.Empty,
        finish=None,
        may_tile=False,
    ):
        self.operation = operation
        self.body = body if body is not None else pb.Empty()
        self.tensors = list(tensors)
        self.rooms = list(rooms)  # of (name, bytes)
        self.model = model or ""
        self.reply = reply  # type of the answer's body
        self.finish = finish or (lambda body, tensors: body)  # makes the caller's result
        self.may_tile = may_tile
        if len(self.tensors) > TENSORS_MAX:
            raise ValueError(f"{len(self.tensors)} tensors, at most {TENSORS_MAX}")

    @property
    def wants_sharing(self):
        """True when a tensor is on a GPU, or large enough for shared memory."""
        if any(tensor.memory is not None for tensor in self.tensors):
            return True
        sizes = [tensor.bytes for tensor in self.tensors] + [count for _, count in self.rooms]
        return max(sizes, default=0) >= SHARED_BYTES_MIN


class Call:
    """A Request on its way."""

    def __init__(self, request, timeout, priority=0, progress=None, session=None):
        self.id = os.urandom(16)
        self.deadline = time.monotonic() + timeout
        self.send_at = 0.0
        self.sent = False
        self.result = None
        self._request = request
        self._priority = priority
        self._progress = progress
        self._session = session
        self._resend = _RESEND_SECONDS_FIRST
        self._leases = {}  # by (name, whether it is room)
        self._buffer = None  # on a GPU
        self._offsets = {}  # in it, by the same
        self._body = request.body.SerializeToString()
        if session is not None:
            self._share()

    def due(self, now):
        """True when the request is to be sent (again)."""
        return now >= self.send_at

    @property
    def wake_at(self):
        """When something is to be done if nothing arrives."""
        return min(self.deadline, self.send_at)

    def frames(self, now):
        """The message, with the time that is left."""
        if (self._leases or self._buffer) and not self._session.alive:
            # The daemon was restarted: what was shared goes in frames.
            self._leases.clear()
            self._drop_buffer()
        header = pb.Header(
            major=MAJOR,
            kind=pb.REQUEST,
            id=self.id,
            operation=self._request.operation,
            model=self._request.model,
            timeout_ms=self._milliseconds(now),
            priority=self._priority,
            want_progress=self._progress is not None,
            may_tile=self._request.may_tile,
        )
        payloads = []
        for tensor in self._request.tensors:
            entry = header.tensors.add(
                name=tensor.name, dtype=tensor.dtype, dims=tensor.dims, bytes=tensor.bytes
            )
            if not self._refer(entry, (tensor.name, False)):
                payloads.append(tensor.data)
        for name, count in self._request.rooms:
            if (name, True) in self._leases or (name, True) in self._offsets:
                self._refer(header.tensors.add(name=name, bytes=count, room=True), (name, True))
        return [header.SerializeToString(), self._body, *payloads]

    def was_sent(self, now):
        """Notes that the message went out, and sets the time of the next."""
        self.sent = True
        self.send_at = now + self._resend
        self._resend = min(2 * self._resend, _RESEND_SECONDS_MAX)

    def feed(self, header, frames):
        """Takes a message with this call's id. True when the call is over: result is set.

        Raises what the daemon answered.
        """
        if header.kind == pb.PROGRESS:
            if self._progress is not None:
                self._progress(header.progress_done, header.progress_total)
            return False
        if header.kind != pb.REPLY:
            return False
        if header.code == pb.OK:
            self.result = self._read(header, frames)
            return True
        if self._buffer and header.code == pb.NOT_FOUND and header.message.startswith(_LEASE_WORDS):
            self._drop_buffer(lost=True)
            raise LeaseLost(header.message)
        again = time.monotonic() + header.retry_after_ms / 1000
        if header.code in _RETRYABLE and header.retry_after_ms > 0 and again < self.deadline:
            self.send_at, self._resend = again, _RESEND_SECONDS_FIRST
            return False
        raise errors.from_code(header.code, header.message, header.retry_after_ms)

    def cancel_frames(self):
        """A message that takes the request back."""
        header = pb.Header(major=MAJOR, kind=pb.REQUEST, id=os.urandom(16), operation=pb.CANCEL)
        return [header.SerializeToString(), pb.Cancel(id=self.id).SerializeToString()]

    def close(self):
        """Gives shared memory back."""
        for lease in self._leases.values():
            self._session.release(lease)
        self._leases.clear()
        if self._buffer is not None:
            self._session.put_buffer(self._buffer)
        self._buffer = None

    def _drop_buffer(self, lost=False):
        if self._buffer is not None:
            self._session.drop_buffer(self._buffer, lost)
        self._buffer = None
        self._offsets.clear()

    def _milliseconds(self, now):
        return max(1, min(int((self.deadline - now) * 1000 + 0.999), 2**32 - 1))

    def _share_device(self):
        """On a GPU, what comes from there and goes there has a buffer together."""
        memory = next((t.memory for t in self._request.tensors if t.memory is not None), None)
        if memory is None:
            return
        sizes = [((t.name, False), t.bytes) for t in self._request.tensors if t.memory is not None]
        sizes += [((name, True), count) for name, count in self._request.rooms]
        offsets, end = {}, 0
        for key, count in sizes:
            offsets[key] = end
            end += -(-count // _DEVICE_ALIGNMENT) * _DEVICE_ALIGNMENT
        self._buffer = self._session.take_buffer(memory.card, end)
        if self._buffer is None:
            return
        self._offsets = offsets
        for tensor in self._request.tensors:
            if tensor.memory is not None:  # waits: the daemon may read once it is asked
                tensor.memory.copy_to(self._buffer.pointer + offsets[tensor.name, False])

    def _share(self):
        self._share_device()
        if self._buffer is not None:
            return
        sizes = [((tensor.name, False), tensor.bytes) for tensor in self._request.tensors]
        sizes += [((name, True), count) for name, count in self._request.rooms]
        for key, count in sizes[:TENSORS_MAX]:
            lease = self._session.acquire(count) if count >= SHARED_BYTES_MIN else None
            if lease is not None:
                self._leases[key] = lease
        for tensor in self._request.tensors:
            lease = self._leases.get((tensor.name, False))
            if lease is not None:
                lease.memory[: tensor.bytes] = tensor.data

    def _refer(self, entry, key):
        if self._buffer is not None and key in self._offsets:
            buffer = self._buffer
            entry.where = pb.DEVICE
            entry.shared.pool, entry.shared.slot = buffer.pool, buffer.slot
            entry.shared.generation, entry.shared.offset = buffer.generation, self._offsets[key]
            return True
        lease = self._leases.get(key)
        if lease is None:
            return False
        entry.where = pb.SHARED
        entry.shared.pool, entry.shared.slot = lease.pool, lease.slot
        entry.shared.generation, entry.shared.offset = lease.generation, 0
        return True

    def _read(self, header, frames):
        payloads = list(frames[1:])
        tensors = {}
        try:
            body = self._request.reply.FromString(bytes(frames[0]) if frames else b"")
        except DecodeError as error:
            raise errors.Internal(f"the answer's body cannot be read: {error}") from error
        for entry in header.tensors:
            tensor = self._tensor(entry, payloads)
            if tensor is None or tensor.bytes != entry.bytes or not tensor.is_whole:
                raise errors.Internal(f'the answer\'s tensor "{entry.name}" is not what it says')
            tensors[entry.name] = tensor
        return self._request.finish(body, tensors)

    def _tensor(self, entry, payloads):
        if entry.where == pb.DEVICE:
            memory = self._buffer.range(entry.shared, entry.bytes) if self._buffer else None
            return memory and DeviceTensor(entry.name, entry.dtype, entry.dims, memory)
        if entry.where == pb.SHARED:
            data = self._in_room(entry)
        else:
            data = payloads.pop(0) if payloads else None
        return None if data is None else Tensor(entry.name, entry.dtype, entry.dims, data)

    def _in_room(self, entry):
        for lease in self._leases.values():
            end = entry.shared.offset + entry.bytes
            if lease.matches(entry.shared) and end <= len(lease.memory):
                return lease.memory[entry.shared.offset : end]
        return None


class Steps:
    """A conversation (a generator of Requests and functions, see loras.py) on its way.

    Whoever drives it does what now is, and says what came of it, until it is over.
    """

    def __init__(self, conversation, timeout):
        self.over = False
        self.now = None
        self.result = None
        self._conversation = conversation
        self._deadline = time.monotonic() + timeout
        self._go(next, conversation)

    @property
    def is_work(self):
        """True for a request whose progress is worth telling."""
        return isinstance(self.now, Request) and self.now.operation in _WORK

    def seconds_left(self):
        """Until the deadline of the whole; raises when it has passed."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise errors.DeadlineExceeded("the time was over before the last question")
        return left

    def done(self, result):
        """Hands a step's result in."""
        self._go(self._conversation.send, result)

    def failed(self, error):
        """Hands an exception in; raises what the conversation makes of it."""
        self._go(self._conversation.throw, error)

    def _go(self, resume, argument):
        try:
            self.now = resume(argument)
        except StopIteration as end:
            self.over, self.result = True, end.value


def read_header(frames):
    """(Header, the frames behind it) of a message; (None, None) for one that cannot be read."""
    if len(frames) > 1 and len(frames[0]) == 0:
        frames = frames[1:]  # a delimiter, as REQ has it
    try:
        header = pb.Header.FromString(bytes(frames[0]))
    except (DecodeError, IndexError):
        return None, None
    if header.major != MAJOR:
        return None, None
    return header, frames[1:]
