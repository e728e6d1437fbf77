"""The asyncio client: the calls of luna.Daemon as coroutines, any number of them at once.

daemon = await luna.aio.connect()
latent, result = await asyncio.gather(daemon.encode_image(a), daemon.encode_text("a cat"))
"""

import asyncio
import contextlib
import time

import zmq
import zmq.asyncio

from . import connection, endpoint as endpoints, errors, requests
from .call import Call, LeaseLost, Steps, read_header
from .daemon import DEFAULT_CONNECT_TIMEOUT, DEFAULT_TIMEOUT
from .operations import Operations

_SEND_AGAIN_SECONDS = 0.05  # while nobody is connected


class Daemon(Operations):
    """A connection to a daemon; see connect. It belongs to the loop that made it."""

    def __init__(
        self,
        endpoint=None,
        timeout=DEFAULT_TIMEOUT,
        *,
        shared_memory=True,
        server_key=None,
        public_key=None,
        secret_key=None,
    ):
        keys = connection.keys_of(server_key, public_key, secret_key)
        self.endpoint = endpoints.find(endpoint)
        self.timeout = timeout
        self.hello = None
        self._waiting = {}  # by id: (Call, Future)
        self._sharing = connection.Sharing(self.endpoint, shared_memory)
        self._socket = connection.open_socket(zmq.asyncio.Context.instance(), self.endpoint, keys)
        self._reader = asyncio.ensure_future(self._read())

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.close()

    async def close(self):
        """Closes the connection; calls that still wait raise luna.Cancelled."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(errors.Cancelled("the connection was closed"))
        self._sharing.close()
        self._socket.close()

    async def _run(self, request, timeout=None, priority=0, progress=None):
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        if request.wants_sharing:
            await self._attach()
        while True:
            try:
                return await self._run_once(request, deadline, priority, progress)
            except LeaseLost:
                continue  # without it, as another request

    async def _run_once(self, request, deadline, priority, progress):
        session = self._sharing.session if request.wants_sharing else None
        call = Call(request, deadline - time.monotonic(), priority, progress, session)
        future = asyncio.get_running_loop().create_future()
        self._waiting[call.id] = call, future
        try:
            return await self._wait(call, future)
        except (asyncio.CancelledError, errors.DeadlineExceeded):
            await self._send_cancel(call)
            raise
        finally:
            del self._waiting[call.id]
            call.close()

    async def _converse(self, conversation, timeout=None, priority=0, progress=None):
        with contextlib.closing(conversation):
            steps = Steps(conversation, self.timeout if timeout is None else timeout)
            while not steps.over:
                try:
                    if callable(steps.now):
                        loop = asyncio.get_running_loop()
                        result = await loop.run_in_executor(None, steps.now)
                    else:
                        shown = progress if steps.is_work else None
                        result = await self._run(steps.now, steps.seconds_left(), priority, shown)
                except Exception as error:  # the conversation may know what to do
                    steps.failed(error)
                else:
                    steps.done(result)
            return steps.result

    async def _wait(self, call, future):
        while True:
            now = time.monotonic()
            if now >= call.deadline:
                raise errors.DeadlineExceeded(f"no answer from {self.endpoint} in time")
            until = call.wake_at
            if call.due(now):
                sent = await self._send(call, now)
                until = call.wake_at if sent else min(call.deadline, now + _SEND_AGAIN_SECONDS)
            done, _ = await asyncio.wait([future], timeout=max(0.0, until - time.monotonic()))
            if done:
                return future.result()

    async def _send(self, call, now):
        try:
            await self._socket.send_multipart(call.frames(now), zmq.NOBLOCK)
        except zmq.Again:
            return False
        call.was_sent(now)
        return True

    async def _send_cancel(self, call):
        if not call.sent:
            return
        try:
            await self._socket.send_multipart(call.cancel_frames(), zmq.NOBLOCK)
        except zmq.Again:
            pass  # nobody is there to hear it

    async def _read(self):
        while True:
            header, frames = read_header(await self._socket.recv_multipart())
            call, future = self._waiting.get(header.id, (None, None)) if header else (None, None)
            if call is None or future.done():
                continue  # an answer to a call that is over
            try:
                if call.feed(header, frames):
                    future.set_result(call.result)
            except Exception as error:  # the call's, a progress callback's included
                future.set_exception(error)

    async def _attach(self):
        if not self._sharing.missing:
            return
        self._sharing.postpone()
        try:
            reply = await self._run(requests.attach(), connection.ATTACH_SECONDS)
        except errors.Error:
            return  # no shared memory, so frames
        self._sharing.open(reply.path)


async def connect(
    endpoint=None, timeout=DEFAULT_TIMEOUT, *, connect_timeout=DEFAULT_CONNECT_TIMEOUT, **options
):
    """As luna.connect."""
    daemon = Daemon(endpoint, timeout, **options)
    try:
        daemon.hello = await daemon.ping(timeout=connect_timeout)
    except errors.DeadlineExceeded:
        await daemon.close()
        raise errors.Unavailable(f"nobody answers at {daemon.endpoint}") from None
    except BaseException:
        await daemon.close()
        raise
    return daemon
