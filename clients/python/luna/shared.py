"""The client's end of shared memory and of CUDA IPC: a session at the lease socket, the pools mapped.

The session is the connection; its leases end with it. What a packet says is checked against what
was mapped, and a pool that could be shrunk behind our back is not mapped.
"""

import fcntl
import logging
import mmap
import os
import select
import socket
import time

from google.protobuf.message import DecodeError

from . import cuda
from . import luna_pb2 as pb

_ANSWER_SECONDS = 2.0  # an exchange is local and short
_PACKET_BYTES = 4096
_IDLE_BUFFERS_MAX = 2  # of device memory
_DEVICE_AGAIN_SECONDS = 5.0  # after a refusal
_DEVICE_LOST_SECONDS = 1.0  # after a lease was lost
_log = logging.getLogger("luna")
_F_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)
_F_SEAL_SHRINK = getattr(fcntl, "F_SEAL_SHRINK", 2)
_F_SEALS = _F_SEAL_SHRINK | getattr(fcntl, "F_SEAL_WRITE", 8)  # of memory that changes no more


class Lease:
    """Memory that this client holds."""

    def __init__(self, reply, memory):
        self.pool = reply.pool
        self.slot = reply.slot
        self.generation = reply.generation
        self.memory = memory  # the slot's bytes, writable

    def matches(self, shared):
        """True when a SharedRef is in this lease."""
        return (self.pool, self.slot, self.generation) == (
            shared.pool,
            shared.slot,
            shared.generation,
        )


class _Hold:
    """The descriptor that tells the daemon, and outlives its processes: we have device memory open."""

    def __init__(self, descriptor):
        self._descriptor = descriptor
        self._process = os.getpid()
        os.set_inheritable(descriptor, False)

    def end(self):
        """Nothing is open any more."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=descriptor) as channel:
            if self._process != os.getpid():
                return  # a fork's: it is for its parent to say so
            try:
                channel.shutdown(socket.SHUT_RDWR)  # for the forks that have it, too
            except OSError:
                pass  # the daemon's process is gone


class DeviceBuffer:
    """Memory of the daemon's GPU that this client holds, mapped."""

    def __init__(self, reply, card, pointer, hold):
        self.pool = reply.pool
        self.slot = reply.slot
        self.generation = reply.generation
        self.bytes = reply.bytes
        self.card = card
        self.pointer = pointer
        self._hold = hold
        self._process = os.getpid()

    def __del__(self):
        self.close()

    def range(self, shared, count):
        """The Memory of a SharedRef and so many bytes; None when it is not in this buffer."""
        named = (shared.pool, shared.slot, shared.generation)
        if named != (self.pool, self.slot, self.generation) or shared.offset + count > self.bytes:
            return None
        return cuda.Memory(self.card, self.pointer + shared.offset, count)

    def close(self):
        """Takes the mapping away, and lets the daemon know."""
        pointer, self.pointer = self.pointer, None
        if pointer is None:
            return
        try:
            if self._process == os.getpid():  # a fork has none
                self.card.close(pointer)
        except cuda.Error as error:
            _log.debug("device memory was not closed: %s", error)
        if self._hold is not None:
            self._hold.end()


def adapter(path, reference):
    """The file of an adapter over the daemon's adapter socket: a view of the daemon's memory when
    that can change no more, else a copy; None when it has to be asked for in another way."""
    descriptors = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as session:
            session.settimeout(_ANSWER_SECONDS)
            session.connect(path)
            session.send(pb.AdapterRequest(reference=reference).SerializeToString())
            packet, descriptors, _, _ = socket.recv_fds(session, _PACKET_BYTES, 4)
        reply = pb.AdapterReply.FromString(packet)
        if not packet or reply.code != pb.OK or not descriptors:
            return None
        return _view(descriptors[0], reply.bytes)
    except (OSError, DecodeError):
        return None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _view(descriptor, count):
    if os.fstat(descriptor).st_size < count or count == 0:
        return None
    try:
        seals = fcntl.fcntl(descriptor, _F_GET_SEALS)
    except OSError:
        seals = 0  # a file on a disk, which somebody may cut short
    if seals & _F_SEALS == _F_SEALS:
        return memoryview(mmap.mmap(descriptor, count, prot=mmap.PROT_READ))
    data = bytearray()
    while len(data) < count:
        piece = os.pread(descriptor, count - len(data), len(data))
        if not piece:
            return None
        data += piece
    return memoryview(data).toreadonly()


class Session:
    """A connection to the lease socket; OSError when there is none."""

    def __init__(self, path):
        self._pools = {}
        self._idle = []  # DeviceBuffers
        self._device_again_at = {}  # by UUID
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_ANSWER_SECONDS)
        try:
            self._socket.connect(path)
        except OSError:
            self.close()
            raise

    def close(self):
        """Ends the session and all its leases."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        while self._idle:
            self._idle.pop().close()

    @property
    def alive(self):
        """False once the daemon has ended the session."""
        if self._socket is None:
            return False
        # Between exchanges nothing is to be read: an end of file is what makes it readable.
        if select.select([self._socket], [], [], 0)[0]:
            self.close()
        return self._socket is not None

    def acquire(self, count):
        """A Lease of at least count bytes, or None when there is none to be had."""
        answer = self._exchange(pb.LeaseRequest(acquire_bytes=count))
        if answer is None:
            return None
        reply, descriptors = answer
        self._keep(reply, descriptors)
        if reply.code != pb.OK:
            return None
        pool = self._pools.get(reply.pool)
        if pool is None or reply.bytes < count or reply.offset + reply.bytes > len(pool):
            self.close()
            return None
        return Lease(reply, memoryview(pool)[reply.offset : reply.offset + reply.bytes])

    def release(self, lease):
        """Gives a lease back."""
        lease.memory.release()
        request = pb.LeaseRequest(release_slot=lease.slot, release_generation=lease.generation)
        answer = self._exchange(request)
        for descriptor in answer[1] if answer else ():
            os.close(descriptor)

    def take_buffer(self, card, count):
        """A DeviceBuffer of at least count bytes on a card, or None: then tensors go by the host.

        Buffers are kept for the next call, because making one takes longer than using it.
        """
        if not self.alive or time.monotonic() < self._device_again_at.get(card.uuid, 0.0):
            return None
        mine = [buffer for buffer in self._idle if buffer.card is card]
        fitting = [buffer for buffer in mine if buffer.bytes >= count]
        if fitting:
            best = min(fitting, key=lambda buffer: buffer.bytes)
            self._idle.remove(best)
            return best
        for buffer in mine:  # too small
            self._idle.remove(buffer)
            self.drop_buffer(buffer)
        return self._acquire_buffer(card, count)

    def put_buffer(self, buffer):
        """Keeps a buffer for later calls, but not many."""
        if not self.alive:
            buffer.close()
            return
        self._idle.append(buffer)
        if len(self._idle) > _IDLE_BUFFERS_MAX:
            smallest = min(self._idle, key=lambda each: each.bytes)
            self._idle.remove(smallest)
            self.drop_buffer(smallest)

    def drop_buffer(self, buffer, lost=False):
        """Gives a buffer back: first the mapping goes, then the lease."""
        buffer.close()
        if lost:
            self._device_again_at[buffer.card.uuid] = time.monotonic() + _DEVICE_LOST_SECONDS
        self._exchange(
            pb.LeaseRequest(
                release_pool=buffer.pool,
                release_slot=buffer.slot,
                release_generation=buffer.generation,
            )
        )

    def _acquire_buffer(self, card, count):
        answer = self._exchange(pb.LeaseRequest(acquire_bytes=count, device=card.uuid))
        if answer is None:
            return None
        reply, descriptors = answer
        hold = None
        if reply.handle and descriptors:
            hold = _Hold(descriptors.pop(0))
        self._keep(reply, descriptors)  # of a daemon that knows shared memory alone
        why, pause = reply.message, _DEVICE_AGAIN_SECONDS
        if reply.code == pb.OK:
            try:
                buffer = DeviceBuffer(reply, card, card.open(reply.handle), hold)
                if buffer.bytes >= count:
                    return buffer
                buffer.close()
            except cuda.Error as error:
                why, pause = error, float("inf")  # what cannot be mapped once never can
                if hold is not None:
                    hold.end()
            self._exchange(
                pb.LeaseRequest(
                    release_pool=reply.pool,
                    release_slot=reply.slot,
                    release_generation=reply.generation,
                )
            )
        if card.uuid not in self._device_again_at:
            _log.debug("tensors of %s go by the host: %s", card.uuid, why)
        self._device_again_at[card.uuid] = time.monotonic() + pause
        return None

    def _keep(self, reply, descriptors):
        try:
            if reply.code == pb.OK and descriptors and reply.pool not in self._pools:
                self._map(reply, descriptors[0])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _map(self, reply, descriptor):
        try:
            sealed = fcntl.fcntl(descriptor, _F_GET_SEALS) & _F_SEAL_SHRINK
            if sealed and os.fstat(descriptor).st_size >= reply.pool_bytes > 0:
                self._pools[reply.pool] = mmap.mmap(descriptor, reply.pool_bytes)
        except OSError:
            pass  # no mapping, no leases: the tensors go in frames

    def _exchange(self, request):
        if not self.alive:
            return None
        try:
            self._socket.send(request.SerializeToString())
            packet, descriptors, _, _ = socket.recv_fds(self._socket, _PACKET_BYTES, 4)
            if packet:
                return pb.LeaseReply.FromString(packet), descriptors
        except (OSError, DecodeError):
            pass
        self.close()
        return None
