"""A daemon for tests of clients: a ROUTER in a thread that answers as the test says.

    with FakeDaemon(tmp_path) as fake:
        fake.on[pb.ENCODE_IMAGE] = lambda request: request.reply(...)
        ...
        assert fake.requests[pb.ENCODE_IMAGE][0].header.model == "sdxl"

PING is answered always. With leases=True there is a lease socket beside it, with a pool of 16 MiB.
"""

import collections
import fcntl
import mmap
import os
import socket
import threading

import zmq

from luna import luna_pb2 as pb

POOL_BYTES = 16 << 20
CHUNK_BYTES = 300000  # of LORA_PUT and LORA_GET: some go in shared memory, the last may not
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2


class Request:
    """One message of a client, and the ways to answer it."""

    def __init__(self, daemon, route, header, body, payloads):
        self.daemon = daemon
        self.route = route
        self.header = header
        self.body = body
        self.payloads = payloads
        self.number = 0  # how many times this id came before

    def reply(self, body=None, tensors=(), kind=pb.REPLY, **fields):
        """tensors: (name, dtype, dims, bytes); (SharedRef, count) as bytes for shared memory."""
        header = pb.Header(
            major=1, kind=kind, id=self.header.id, operation=self.header.operation, **fields
        )
        payloads = []
        for name, dtype, dims, data in tensors:
            entry = header.tensors.add(name=name, dtype=dtype, dims=dims)
            if isinstance(data, tuple):
                entry.shared.CopyFrom(data[0])
                entry.where, entry.bytes = pb.SHARED, data[1]
            else:
                entry.bytes = len(data)
                payloads.append(data)
        content = body.SerializeToString() if body is not None else b""
        self.daemon.socket.send_multipart(
            [*self.route, header.SerializeToString(), content, *payloads]
        )

    def fail(self, code, message, retry_after_ms=0):
        self.reply(code=code, message=message, retry_after_ms=retry_after_ms)

    def progress(self, done, total):
        self.reply(kind=pb.PROGRESS, progress_done=done, progress_total=total)

    def tensor(self, name):
        """The bytes of an input, wherever they are."""
        payloads = iter(self.payloads)
        for entry in self.header.tensors:
            data = self.daemon.leases.view(entry) if entry.where == pb.SHARED else next(payloads)
            if entry.name == name and not entry.room:
                return bytes(data)
        raise KeyError(name)

    def room(self, name):
        return next(
            (entry for entry in self.header.tensors if entry.room and entry.name == name), None
        )


class Leases:
    """A lease socket that hands out one slot after the other and keeps count."""

    def __init__(self, path, sealed=True):
        self.descriptor = os.memfd_create("pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, POOL_BYTES)
        if sealed:
            fcntl.fcntl(self.descriptor, F_ADD_SEALS, F_SEAL_SHRINK)
        self.memory = mmap.mmap(self.descriptor, POOL_BYTES)
        self.held = {}  # slot: (generation, offset, bytes)
        self.granted = 0
        self.next_offset = 0
        self.connections = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen()
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def view(self, entry):
        generation, offset, _ = self.held[entry.shared.slot]
        assert generation == entry.shared.generation
        start = offset + entry.shared.offset
        return memoryview(self.memory)[start : start + entry.bytes]

    def end_sessions(self):
        """As a daemon that is killed: its end of every session closes."""
        for connection in self.connections:
            connection.shutdown(socket.SHUT_RDWR)
        self.held.clear()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()
        os.close(self.descriptor)

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        known = False
        with connection:
            while packet := connection.recv(4096):
                request = pb.LeaseRequest.FromString(packet)
                reply = self._grant(request) if request.acquire_bytes else self._release(request)
                descriptors = [] if known or not reply.pool_bytes else [self.descriptor]
                known = known or bool(descriptors)
                socket.send_fds(connection, [reply.SerializeToString() or b"\x08\x00"], descriptors)

    def _grant(self, request):
        size = -(-request.acquire_bytes // 65536) * 65536
        if self.next_offset + size > POOL_BYTES:
            return pb.LeaseReply(code=pb.RESOURCE_EXHAUSTED, message="the pool is full")
        slot = self.granted
        self.granted += 1
        self.held[slot] = (slot + 1, self.next_offset, size)
        reply = pb.LeaseReply(
            pool=7,
            pool_bytes=POOL_BYTES,
            slot=slot,
            generation=slot + 1,
            offset=self.next_offset,
            bytes=size,
        )
        self.next_offset += size
        return reply

    def _release(self, request):
        held = self.held.get(request.release_slot)
        if held is None or held[0] != request.release_generation:
            return pb.LeaseReply(code=pb.NOT_FOUND)
        del self.held[request.release_slot]
        return pb.LeaseReply()


class FakeDaemon:
    """See the top of the file."""

    def __init__(self, folder, leases=False, sealed=True):
        self.endpoint = f"ipc://{folder}/luna.sock"
        self.on = {}  # by operation: a function of a Request
        self.requests = collections.defaultdict(list)  # by operation, repeats included
        self.came = threading.Condition()
        self.leases = Leases(f"{folder}/lease.sock", sealed) if leases else None
        self.lease_path = f"{folder}/lease.sock"
        self.adapters_path = ""
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(self.endpoint)
        self.stop = self.context.socket(zmq.PAIR)
        self.stop.bind("inproc://stop")
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop.send(b"")
        self.thread.join()
        self.stop.close()
        self.context.term()
        if self.leases is not None:
            self.leases.close()

    def wait_for(self, operation, count=1, seconds=5):
        """Waits until so many messages of an operation have come."""
        with self.came:
            assert self.came.wait_for(lambda: len(self.requests[operation]) >= count, seconds)
        return self.requests[operation]

    def _serve(self):
        end = self.context.socket(zmq.PAIR)
        end.connect("inproc://stop")
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(end, zmq.POLLIN)
        while end not in dict(poller.poll()):
            route, *frames = self.socket.recv_multipart()
            route = [route, b""] if frames[0] == b"" else [route]  # a delimiter, as REQ sends it
            head, body, *payloads = frames[len(route) - 1 :]
            header = pb.Header.FromString(head)
            request = Request(self, route, header, body, payloads)
            with self.came:
                seen = self.requests[header.operation]
                request.number = sum(header.id == earlier.header.id for earlier in seen)
                seen.append(request)
                self.came.notify_all()
            self._answer(request)
        end.close()
        self.socket.close()

    def _answer(self, request):
        operation = request.header.operation
        if operation in self.on:
            self.on[operation](request)
        elif operation == pb.PING:
            hello = pb.PingReply(version="0.1.0", major=1, state="ready", chunk_bytes=CHUNK_BYTES)
            request.reply(hello)
        elif operation == pb.CANCEL:
            request.reply()
        elif operation == pb.ATTACH and self.leases is not None:
            request.reply(
                pb.AttachReply(path=self.lease_path, bytes_min=262144, adapters=self.adapters_path)
            )
        else:
            request.fail(pb.UNIMPLEMENTED, "not in this test")


class Shelf:
    """Answers what is asked about adapters, as a daemon that believes every hash; encodes texts to
    zeros once every entry of their stack is known."""

    def __init__(self, fake):
        self.files = {}  # by hash: (name, bytes)
        self.uploads = {}  # by number: [hash, bytes in all, bytes so far]
        self.steps = []  # of LORA_PUT
        self.lose_uploads = 0  # so many are forgotten at their second chunk
        fake.on[pb.LORA_PUT] = self._put
        fake.on[pb.LORA_GET] = self._get
        fake.on[pb.LORA_HAS] = fake.on[pb.LORA_PIN] = self._has
        fake.on[pb.LORA_LIST] = self._list
        fake.on[pb.ENCODE_TEXT] = fake.on[pb.ENCODE_TOKENS] = self._encode

    def find(self, reference):
        """The hash of a name or a hash, or None."""
        if reference in self.files:
            return reference
        return next((key for key, (name, _) in self.files.items() if name == reference), None)

    def message(self, key):
        name, data = self.files[key]
        return pb.Lora(name=name, hash=key, bytes=len(data), format="safetensors", encoders=["l"])

    def _put(self, request):
        put = pb.LoraPut.FromString(request.body)
        self.steps.append(put.step)
        if put.step == pb.PUT_BEGIN:
            number = len(self.uploads) + 1
            self.uploads[number] = [put.hash, put.bytes, b""]
            known = put.hash in self.files
            request.reply(
                pb.LoraReply(
                    upload=number, known=known, lora=self.message(put.hash) if known else None
                )
            )
            return
        upload = self.uploads[put.upload]
        if put.step == pb.PUT_CHUNK:
            if put.offset and self.lose_uploads:
                self.lose_uploads -= 1
                request.fail(pb.NOT_FOUND, "no such upload")
                return
            assert put.offset == len(upload[2])
            upload[2] += request.tensor("file")
        elif put.step == pb.PUT_COMMIT:
            assert len(upload[2]) == upload[1]
            self.files[upload[0]] = (put.name, upload[2])
            request.reply(pb.LoraReply(known=True, lora=self.message(upload[0])))
            return
        request.reply(pb.LoraReply(received_bytes=len(upload[2])))

    def _get(self, request):
        get = pb.LoraGet.FromString(request.body)
        key = self.find(get.reference)
        if key is None:
            request.fail(pb.NOT_FOUND, f'LoRA "{get.reference}" is not known here')
            return
        piece = self.files[key][1][get.offset : get.offset + CHUNK_BYTES]
        request.reply(
            pb.LoraReply(lora=self.message(key)), [("file", pb.U8, (len(piece),), piece)]
        )

    def _has(self, request):
        reference = pb.LoraName.FromString(request.body).reference
        key = self.find(reference)
        if key is None:
            request.fail(pb.NOT_FOUND, f'LoRA "{reference}" is not known here')
        else:
            request.reply(pb.LoraReply(lora=self.message(key)))

    def _list(self, request):
        offset = pb.Page.FromString(request.body).offset
        keys = sorted(self.files)
        page = [self.message(key) for key in keys[offset : offset + 2]]
        request.reply(pb.LoraListReply(loras=page, total=len(keys)))

    def _encode(self, request):
        body = pb.EncodeText.FromString(request.body)
        for entry in body.loras:
            if not entry.tensor and self.find(entry.reference) is None:
                request.fail(pb.NOT_FOUND, f'LoRA "{entry.reference}" is not known here')
                return
        uses = [pb.LoraUse(reference=entry.reference, modules=12) for entry in body.loras]
        cond = bytes(4 * 77 * 8)
        request.reply(
            pb.TextReply(loras=uses, rows=1), [("cond", pb.F32, (1, 77, 8), cond)]
        )
