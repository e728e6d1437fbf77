"""Adapters on this side: what a caller hands in as one, and the conversations about them.

A conversation is a generator. It yields Requests, and functions that take their time (hashing, reading);
it is sent what came of them, and returns the caller's result. luna.Daemon and luna.aio.Daemon run it.
"""

import collections.abc
import functools
import os
import stat
import tempfile

from . import arrays, errors, requests, shared, tensor_file
from . import luna_pb2 as pb
from .call import Request

_PIECE_BYTES = 8 << 20  # where the daemon names no size
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_FIELDS = frozenset(field.name for field in pb.LoraEntry.DESCRIPTOR.fields)
_KNOWN_FILES_MAX = 256


# ---- what a caller hands in


class Hashes:
    """Hashes of files that were read before, by device, inode, size and time of change."""

    def __init__(self):
        self._known = {}

    def of(self, path):
        """The content hash of a file."""
        entry = os.stat(path)
        key = entry.st_dev, entry.st_ino, entry.st_size, entry.st_mtime_ns
        if key not in self._known:
            with open(path, "rb") as file:
                digest = tensor_file.content_hash(tensor_file.read(file.read()))
            while len(self._known) >= _KNOWN_FILES_MAX:
                del self._known[next(iter(self._known))]
            self._known[key] = digest
        return self._known[key]


class File:
    """An adapter's file on this machine."""

    def __init__(self, path, hashes):
        self.path = os.fspath(path)
        self._hashes = hashes

    def hash(self):
        """Its 64 hexadecimal digits."""
        return self._hashes.of(self.path)

    def size(self):
        """Bytes of it."""
        return os.stat(self.path).st_size

    def read(self):
        """Its bytes."""
        with open(self.path, "rb") as file:
            return file.read()


class StateDict:
    """An adapter as a dictionary of arrays."""

    def __init__(self, tensors):
        self._entries = tensor_file.from_state_dict(tensors)

    def hash(self):
        """Its 64 hexadecimal digits."""
        return tensor_file.content_hash(self._entries)

    def size(self):
        """Bytes of a safetensors file of it."""
        return sum(len(part) for part in tensor_file.pack(self._entries))

    def read(self):
        """The bytes of a safetensors file of it."""
        return b"".join(tensor_file.pack(self._entries))


def _is_file(path):
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _looks_like_path(text):
    return "/" in text or os.sep in text or text.lower().endswith(_SUFFIXES)


def source(thing, hashes):
    """A File or a StateDict of what put_lora takes."""
    if isinstance(thing, collections.abc.Mapping):
        return StateDict(thing)
    if isinstance(thing, (str, os.PathLike)):
        return File(thing, hashes)
    raise TypeError(f"an adapter is a path or a state dict, not {type(thing).__name__}")


class Entry:
    """One entry of a stack: the message, and what of it is on this machine."""

    def __init__(self, thing, hashes):
        fields = {"strength": 1.0}
        if isinstance(thing, collections.abc.Mapping) and "reference" in thing:
            unknown = set(thing) - _FIELDS
            if unknown:
                raise ValueError(f"a stack's entry has no field {', '.join(sorted(unknown))}")
            fields.update(thing)
        elif isinstance(thing, (tuple, list)):
            if len(thing) != 2:
                raise ValueError(f"an entry of {len(thing)} things is not (adapter, strength)")
            fields["reference"], fields["strength"] = thing
        else:
            fields["reference"] = thing
        what = fields.pop("reference")
        self.source = None  # a File or StateDict: its hash is the reference
        self.maybe = None  # a File of the same name as what the daemon may know
        if not isinstance(what, str):
            self.source = source(what, hashes)
        elif _is_file(what):
            if _looks_like_path(what):
                self.source = File(what, hashes)
            else:
                self.maybe = File(what, hashes)
        self.message = pb.LoraEntry(
            reference=what if self.source is None and isinstance(what, str) else "", **fields
        )


def stack(things, hashes):
    """The entries of an encode's loras."""
    if isinstance(things, (str, os.PathLike, collections.abc.Mapping)):
        raise TypeError("loras is a list of adapters, not one")
    return [Entry(thing, hashes) for thing in things]


# ---- conversations


def put(thing, name, progress, piece_bytes):
    """Uploads a File or a StateDict; returns (its Lora message, whether bytes had to move)."""
    digest = yield thing.hash
    try:
        return (yield from _put_once(thing, digest, name, progress, piece_bytes))
    except errors.NotFound:  # the daemon lost the upload: it was restarted
        return (yield from _put_once(thing, digest, name, progress, piece_bytes))


def _put_request(data=None, **fields):
    tensors = [] if data is None else [arrays.Tensor("file", pb.U8, (len(data),), data)]
    return Request(pb.LORA_PUT, pb.LoraPut(**fields), tensors, reply=pb.LoraReply)


def _put_once(thing, digest, name, progress, piece_bytes):
    size = yield thing.size
    begin = yield _put_request(step=pb.PUT_BEGIN, name=name or "", hash=digest, bytes=size)
    if begin.known:
        return begin.lora, False
    try:
        data = memoryview((yield thing.read))
        for offset in range(0, len(data), piece_bytes or _PIECE_BYTES):
            piece = data[offset : offset + (piece_bytes or _PIECE_BYTES)]
            yield _put_request(piece, step=pb.PUT_CHUNK, upload=begin.upload, offset=offset)
            if progress is not None:
                progress(offset + len(piece), len(data))
        commit = yield _put_request(
            step=pb.PUT_COMMIT, name=name or "", hash=digest, upload=begin.upload
        )
    except errors.NotFound:
        raise
    except (errors.Error, OSError):
        try:
            yield _put_request(step=pb.PUT_ABORT, upload=begin.upload)
        except errors.Error:
            pass  # it is forgotten by itself after a while
        raise
    return commit.lora, True


def put_and_name(thing, name, progress, piece_bytes):
    """As put; returns what to call it: the name, or the hash where it has none."""
    lora, _ = yield from put(thing, name, progress, piece_bytes)
    return name or lora.hash


def encode(make_request, entries, one_shot, piece_bytes):
    """Encodes with a stack. make_request(messages, tensors) is asked once, and once more after what
    the daemon lacked was uploaded; with one_shot, what is on this machine travels along."""
    if one_shot:
        return (yield from _encode_one_shot(make_request, entries))
    for entry in entries:
        if entry.source is not None:
            entry.message.reference = yield entry.source.hash
    messages = [entry.message for entry in entries]
    try:
        try:
            return _retold((yield make_request(messages, [])), entries)
        except errors.NotFound as error:  # it may be the model; the first word says what it is
            if not error.message.startswith("LoRA ") or not any(e.source or e.maybe for e in entries):
                raise
        for entry in entries:
            entry.source = entry.source or entry.maybe
            if entry.source is not None:
                lora, _ = yield from put(entry.source, None, None, piece_bytes)
                entry.message.reference = lora.hash
        return _retold((yield make_request(messages, [])), entries)
    except errors.Error as error:
        error.message = _retell(error.message, entries)
        error.args = (error.message,)
        raise


def _retell(text, entries):
    """A message of the daemon with the names of this machine's files in place of their hashes."""
    for entry in entries:
        if isinstance(entry.source, File) and entry.message.reference:
            text = text.replace(entry.message.reference, os.path.basename(entry.source.path))
    return text


def _retold(result, entries):
    result.notes = [_retell(note, entries) for note in result.notes]
    return result


def _encode_one_shot(make_request, entries):
    tensors = []
    for entry in entries:
        if entry.source is not None:
            data = memoryview((yield entry.source.read))
            entry.message.tensor = f"lora.{len(tensors)}"
            if isinstance(entry.source, File):
                entry.message.reference = os.path.basename(entry.source.path)
            tensors.append(arrays.Tensor(entry.message.tensor, pb.U8, (len(data),), data))
    return (yield make_request([entry.message for entry in entries], tensors))


def every(operation, reply, field):
    """All pages of a list, as dictionaries."""
    found = []
    while True:
        page = yield Request(operation, pb.Page(offset=len(found)), reply=reply)
        found += [requests.plain_model(item) for item in getattr(page, field)]
        if len(found) >= page.total or not getattr(page, field):
            return found


def get(reference, path, progress, piece_bytes, local):
    """The file of an adapter: its bytes, or path after they were written there."""
    data = None
    if local:
        data = yield from _get_local(reference)
    if data is None:
        data = yield from _get_pieces(reference, progress, piece_bytes or _PIECE_BYTES)
    if path is None:
        return data
    yield functools.partial(_write, path, data)
    return path


def _get_local(reference):
    try:
        attached = yield requests.attach()
    except errors.Error:
        return None
    if not attached.adapters:
        return None
    return (yield functools.partial(shared.adapter, attached.adapters, reference))


def _piece(reply, tensors):
    data = tensors["file"].data if "file" in tensors else b""
    return reply.lora, bytes(data)  # shared memory goes back with the answer


def _get_pieces(reference, progress, piece_bytes):
    data, first = bytearray(), None
    while first is None or len(data) < first.bytes:
        body = pb.LoraGet(reference=reference, offset=len(data))
        lora, piece = yield Request(
            pb.LORA_GET,
            body,
            rooms=[("file", piece_bytes)],
            reply=pb.LoraReply,
            finish=_piece,
        )
        if first is not None and (lora.hash, lora.bytes) != (first.hash, first.bytes):
            raise errors.FailedPrecondition("the adapter was replaced while it was read")
        if not piece or len(data) + len(piece) > lora.bytes:
            raise errors.Internal(f"the answer holds no bytes of the adapter at {len(data)}")
        first = lora
        reference = lora.hash or reference  # a name may be given to another file at any time
        data += piece
        if progress is not None:
            progress(len(data), lora.bytes)
    return memoryview(data).toreadonly()


def _write(path, data):
    """Writes a file that appears whole or not at all."""
    folder, name = os.path.split(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(prefix=f"{name}.", dir=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        mask = os.umask(0)  # is read by setting it
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
