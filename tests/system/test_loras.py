"""The LoRA store through the wire, with nothing but protobuf: every operation, everything that can be wrong."""

import array
import hashlib
import mmap
import os
import pathlib
import shutil
import socket
import tempfile
import time

import numpy as np
import pytest
import zmq

from adapters import write_torch
from conftest import PATIENCE, Daemon, Raw, request, text_request, wait_until
from files import ROOT, pack_safetensors, read_safetensors, with_header
from luna import luna_pb2 as pb

GOLDEN = ROOT / "tests" / "golden"
CHUNK = 8 << 20


def adapter(seed=1, rank=4, stem="lora_te1_text_model_encoder_layers_0_mlp_fc1", unet=16, **tensors):
    """The bytes of an adapter for one linear, with some floats for the UNet."""
    values = np.random.default_rng(seed)
    made = {f"{stem}.lora_down.weight": values.standard_normal((rank, 64)).astype(np.float32),
            f"{stem}.lora_up.weight": values.standard_normal((256, rank)).astype(np.float32),
            "lora_unet_down_blocks_0.lora_up.weight": np.full((unet, 1), seed, np.float32)}
    return pack_safetensors({**made, **tensors})


def stack_request(loras, one_shots=(), text="a cat", **fields):
    """(header, body, payloads...) of a prompt with a stack of LoraEntry; one_shots: {tensor: bytes}."""
    header, data = text_request(pb.ENCODE_TEXT, text)
    one_shots = dict(one_shots)
    for name, payload in one_shots.items():
        header.tensors.add(name=name, dtype=pb.U8, dims=[len(payload)], bytes=len(payload))
    body = pb.EncodeText(**fields)
    for fields_of in loras:
        body.loras.add(**fields_of)
    return header, body, data, *one_shots.values()


class Client:
    """One connection, one question after the other."""

    def __init__(self, daemon, endpoint=None):
        self.raw = daemon.raw(endpoint=endpoint)

    def ask(self, operation, body, reply, payload=None, code=pb.OK, seconds=60):
        """The reply's body and payloads, or the message of the error that code is."""
        tensors = [] if payload is None else [("file", pb.U8, [len(payload)], len(payload))]
        header = request(operation, tensors)
        answer, rest = self.raw.ask(header, body, *([] if payload is None else [payload]), seconds=seconds)
        name = pb.Code.Name
        assert answer.code == code, (name(answer.code), name(code), answer.message)
        if code != pb.OK:
            return answer.message
        return reply.FromString(rest[0]) if payload is not None or len(rest) < 2 else (reply.FromString(rest[0]), rest[1])

    def name(self, operation, reference, code=pb.OK):
        return self.ask(operation, pb.LoraName(reference=reference), pb.LoraReply, code=code)

    def has(self, reference, code=pb.OK):
        return self.name(pb.LORA_HAS, reference, code)

    def put(self, data=None, code=pb.OK, **fields):
        return self.ask(pb.LORA_PUT, pb.LoraPut(**fields), pb.LoraReply, data, code)

    def get(self, reference, code=pb.OK, **fields):
        return self.ask(pb.LORA_GET, pb.LoraGet(reference=reference, **fields), pb.LoraReply, code=code)

    def list(self):
        loras = []
        while True:
            page = self.ask(pb.LORA_LIST, pb.Page(offset=len(loras)), pb.LoraListReply)
            loras += page.loras
            if len(loras) >= page.total or not page.loras:
                return loras

    def stats(self):
        return self.ask(pb.LORA_STATS, b"", pb.LoraStats)

    def scan(self, code=pb.OK):
        return self.ask(pb.LORA_SCAN, b"", pb.LoraScanReply, code=code)

    def encode(self, loras, code=pb.OK, one_shots=(), **fields):
        answer, rest = self.raw.ask(*stack_request(loras, one_shots, **fields), seconds=60)
        assert answer.code == code, (pb.Code.Name(answer.code), pb.Code.Name(code), answer.message)
        return pb.TextReply.FromString(rest[0]) if code == pb.OK else answer.message


def start(models, daemon=(), **settings):
    """A daemon with settings of the section lora, and, in daemon, of others."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="luna-s-"))
    (folder / "loras").mkdir()
    running = Daemon(folder, models, settings=daemon, extra="[lora]\n" + "".join(
        f"{key} = {value}\n" for key, value in {"directories": folder / "loras", **settings}.items())).wait_ready()
    running.loras = folder / "loras"
    return running


def stop(running):
    try:
        running.stop()
    finally:
        shutil.rmtree(running.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def store(models):
    """One daemon for the tests that clean up behind themselves."""
    running = start(models)
    yield running
    stop(running)


@pytest.fixture
def fresh(models):
    """Makes daemons with settings of the section lora."""
    made = []

    def make(**settings):
        made.append(start(models, **settings))
        return made[-1]

    yield make
    for running in made:
        stop(running)


def let_go(daemon, client, is_to_go):
    """Unpins everything for both users, and evicts what is to go."""
    remote = Client(daemon, daemon.tcp)
    for lora in client.list():
        for who in (client, remote):
            for _ in range(lora.pins):
                who.raw.ask(request(pb.LORA_UNPIN), pb.LoraName(reference=lora.hash))
        if is_to_go(lora):
            client.raw.ask(request(pb.LORA_EVICT), pb.LoraName(reference=lora.hash))


@pytest.fixture
def client(store):
    """A client; what its test leaves in the store goes."""
    client = Client(store)
    yield client
    let_go(store, client, lambda lora: lora.resident)


@pytest.fixture
def write(store):
    """Writes a file below the directory, and takes it away."""
    written = []

    def write(name, data):
        path = store.loras / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_bytes(data)
        part.rename(path)
        written.append(path)
        return path

    yield write
    for path in written:
        path.unlink(missing_ok=True)


# ---- files

def test_a_file_is_known_at_once_under_all_its_names(client, write, store):
    path = write("style/ink.safetensors", adapter(1))
    for reference in ("ink", "ink.safetensors", "style/ink.safetensors", str(path)):
        assert client.has(reference).lora.path == "style/ink.safetensors"
    lora = client.has("ink").lora
    assert (lora.name, lora.hash, lora.resident, lora.uploaded) == ("ink", "", False, False)
    client.name(pb.LORA_PIN, "ink")
    lora = client.has("ink").lora
    assert (lora.format, lora.family, lora.rank, list(lora.encoders)) == ("safetensors", "lora", 4, ["l"])
    assert (lora.modules, lora.resident, lora.pins, lora.pinned) == (1, True, 1, True)
    assert lora.bytes == path.stat().st_size and lora.memory_bytes == 4 * (4 * 64 + 256 * 4)
    assert len(lora.hash) == len(lora.encoder_hash) == 64 and lora.hash != lora.encoder_hash
    assert client.has(lora.hash).lora.name == client.has(lora.encoder_hash).lora.name == "ink"
    client.name(pb.LORA_UNPIN, "ink")
    client.name(pb.LORA_EVICT, "ink")
    lora = client.has("ink").lora
    assert not lora.resident and lora.memory_bytes == 0 and len(lora.hash) == 64


def test_two_files_of_one_name_are_an_error_that_lists_both(client, write):
    write("a/twin.safetensors", adapter(1))
    write("b/twin.safetensors", adapter(2))
    for operation in (pb.LORA_HAS, pb.LORA_PIN, pb.LORA_EVICT):
        message = client.name(operation, "twin", pb.INVALID_ARGUMENT)
        assert "/a/twin.safetensors" in message and "/b/twin.safetensors" in message, message
    assert "/a/twin.safetensors" in client.encode([{"reference": "twin", "strength": 1}], pb.INVALID_ARGUMENT)
    assert client.has("a/twin.safetensors").lora.path == "a/twin.safetensors"


def test_every_format_is_told_by_its_content(client, write):
    torch = (GOLDEN / "lora" / "adapter.pt").read_bytes()
    plain = (GOLDEN / "lora" / "adapter.safetensors").read_bytes()
    hashes = set()
    for name, data, kind in [("a.pt", torch, "torch"), ("b.ckpt", torch, "torch"), ("c.safetensors", torch, "torch"),
                             ("d.safetensors", plain, "safetensors"), ("e.bin", plain, "safetensors"),
                             ("f.pth", plain, "safetensors")]:
        write(name, data)
        got, payload = client.get(name)
        assert payload == data, name
        hashes.add(client.has(name).lora.hash)
    assert len(hashes) == 1
    client.name(pb.LORA_EVICT, "a.pt")


def test_a_link_out_is_not_followed_and_counted(client, write, store):
    secret = store.folder / "secret.safetensors"
    secret.write_bytes(adapter(3))
    for name, target in (("up.safetensors", "../secret.safetensors"), ("to.safetensors", secret)):
        (store.loras / name).symlink_to(target)
    try:
        assert client.scan().refused == 2
        for name in ("up", "to", "up.safetensors", str(secret), "secret"):
            client.has(name, pb.NOT_FOUND)
        client.has("../secret.safetensors", pb.INVALID_ARGUMENT)
    finally:
        for name in ("up.safetensors", "to.safetensors"):
            (store.loras / name).unlink()


def test_a_scan_tells_what_came_and_went(client, write, store):
    client.scan()
    before = client.scan().found
    paths = [write(f"scan-{i}.safetensors", adapter(i)) for i in range(3)]
    scan = client.scan()  # those may have been noticed before it
    assert scan.found == before + 3 and scan.refused == 0
    paths[0].unlink()
    assert client.scan().found == before + 2
    remote = Client(store, store.tcp)
    assert "LORA_SCAN" in remote.scan(pb.PERMISSION_DENIED)


def test_a_file_that_changes_is_another_entry(client, write):
    write("moving.safetensors", adapter(1))
    client.name(pb.LORA_PIN, "moving")
    first = client.has("moving").lora.hash
    client.name(pb.LORA_UNPIN, "moving")
    write("moving.safetensors", adapter(2))
    _, payload = client.get("moving")
    assert payload == adapter(2)
    assert client.has("moving").lora.hash != first
    client.has(first, pb.NOT_FOUND)


def test_the_list_has_pages_by_name(client, write):
    for i in range(40):
        write(f"page-{i:02}.safetensors", adapter(i))
    client.scan()
    names = [lora.name for lora in client.list()]
    assert [name for name in names if name.startswith("page-")] == [f"page-{i:02}" for i in range(40)]
    assert names == sorted(names)


# ---- uploads

def upload(client, data, name="", piece=1000):
    """BEGIN, CHUNK, COMMIT; returns what COMMIT said."""
    whole = client.put(data, name="probe")
    client.name(pb.LORA_EVICT, "probe")
    begun = client.put(step=pb.PUT_BEGIN, hash=whole.lora.hash, bytes=len(data))
    assert not begun.known and begun.upload
    for at in range(0, len(data), piece):
        said = client.put(data[at:at + piece], step=pb.PUT_CHUNK, upload=begun.upload, offset=at)
        assert said.received_bytes == min(at + piece, len(data))
    return client.put(step=pb.PUT_COMMIT, upload=begun.upload, name=name)


def test_an_upload_is_kept_once_and_comes_back_as_it_was(client):
    data = adapter(21, unet=30000)
    done = upload(client, data, "mine", piece=50_000)
    assert done.lora.name == "mine" and done.lora.uploaded and not done.known
    assert done.lora.bytes == done.lora.memory_bytes == len(data)
    again = client.put(step=pb.PUT_BEGIN, hash=done.lora.hash, bytes=len(data), name="twice")
    assert again.known and not again.upload and again.lora.name == "twice"
    assert client.put(data, name="thrice").known
    assert client.stats().uploads == 1
    back = b"".join(client.get("twice", offset=at, bytes=7000)[1] for at in range(0, len(data), 7000))
    assert back == data
    assert "behind the end" in client.get("mine", pb.INVALID_ARGUMENT, offset=len(data) + 1)
    for name in ("mine", "twice"):
        client.name(pb.LORA_EVICT, name)
        client.has(name, pb.NOT_FOUND)
    assert client.has("thrice").lora.resident
    client.name(pb.LORA_EVICT, "thrice")
    client.has(done.lora.hash, pb.NOT_FOUND)
    assert client.stats().uploads == 0


def test_an_upload_of_several_chunks_of_eight_mebibytes(client):
    data = adapter(22, unet=5 << 20)
    done = upload(client, data, "large", piece=CHUNK)
    got = bytearray()
    while len(got) < len(data):
        reply, piece = client.get("large", offset=len(got))
        assert len(piece) == min(CHUNK, len(data) - len(got)) and reply.lora.bytes == len(data)
        got += piece
    assert bytes(got) == data
    client.name(pb.LORA_EVICT, done.lora.hash)


def test_what_does_not_fit_an_upload_is_refused_with_both_numbers(client):
    data = adapter(23)
    begun = client.put(step=pb.PUT_BEGIN, hash="ab" * 32, bytes=len(data))
    chunk = {"step": pb.PUT_CHUNK, "upload": begun.upload}
    assert "at 5; the next one begins at 0" in client.put(data[:10], pb.INVALID_ARGUMENT, offset=5, **chunk)
    assert str(len(data)) in client.put(data + b"x", pb.INVALID_ARGUMENT, **chunk)
    assert "8388608" in client.put(bytes(CHUNK + 1), pb.INVALID_ARGUMENT, **chunk)
    client.put(data[:10], **chunk)
    assert f"10 of {len(data)}" in client.put(code=pb.INVALID_ARGUMENT, step=pb.PUT_COMMIT, upload=begun.upload)
    client.put(data[10:], offset=10, **chunk)
    message = client.put(code=pb.INVALID_ARGUMENT, step=pb.PUT_COMMIT, upload=begun.upload)
    assert "ab" * 32 in message and message.count("hash") == 1
    client.put(code=pb.NOT_FOUND, step=pb.PUT_COMMIT, upload=begun.upload)
    assert client.stats().totals.bytes == 0


def test_an_upload_is_its_users_alone_and_can_be_aborted(client, store):
    begun = client.put(step=pb.PUT_BEGIN, hash="ab" * 32, bytes=100)
    remote = Client(store, store.tcp)
    for step in (pb.PUT_COMMIT, pb.PUT_ABORT):
        remote.put(code=pb.NOT_FOUND, step=step, upload=begun.upload)
    remote.put(b"x", pb.NOT_FOUND, step=pb.PUT_CHUNK, upload=begun.upload)
    client.put(step=pb.PUT_ABORT, upload=begun.upload)
    client.put(code=pb.NOT_FOUND, step=pb.PUT_ABORT, upload=begun.upload)


def test_users_have_their_own_names_pins_and_evictions(client, store, write):
    write("house.safetensors", adapter(31))
    client.name(pb.LORA_PIN, "house")
    remote = Client(store, store.tcp)
    client.put(adapter(32), name="ours")
    assert "another user" in remote.put(adapter(33), pb.PERMISSION_DENIED, name="ours", hash="")
    assert "directories" in remote.put(adapter(33), pb.PERMISSION_DENIED, name="house")
    remote.name(pb.LORA_EVICT, "ours", pb.PERMISSION_DENIED)
    remote.name(pb.LORA_EVICT, "house", pb.PERMISSION_DENIED)
    remote.name(pb.LORA_UNPIN, "house", pb.NOT_FOUND)
    assert remote.name(pb.LORA_PIN, "house").lora.pins == 2
    assert "2 pins" in client.name(pb.LORA_EVICT, "house", pb.FAILED_PRECONDITION)
    remote.put(adapter(34), name="theirs")
    remote.name(pb.LORA_EVICT, "theirs")
    for who in (remote, client):
        who.name(pb.LORA_UNPIN, "house")
    for name in ("house", "ours"):
        client.name(pb.LORA_EVICT, name)
    wait_until(lambda: client.stats().totals.entries == 0, 5, "nothing is left")


# ---- the socket with descriptors

def fetch(path, reference):
    """(reply, descriptor or None) of one question on the adapter socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.connect(path)
        channel.settimeout(20 * PATIENCE)
        channel.send(pb.AdapterRequest(reference=reference).SerializeToString())
        packet, ancillary, _, _ = channel.recvmsg(65536, socket.CMSG_SPACE(4))
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data[:4])
        return pb.AdapterReply.FromString(packet), descriptors[0] if descriptors else None


def test_a_local_client_maps_the_file_itself_and_cannot_write_it(client, store, write):
    attach = pb.AttachReply.FromString(store.raw().ask(request(pb.ATTACH))[1][0])
    assert attach.adapters and os.stat(attach.adapters).st_mode & 0o777 == 0o600
    write("map.safetensors", adapter(41))
    client.put(adapter(42), name="memory")
    for name, data in (("map", adapter(41)), ("memory", adapter(42))):
        reply, descriptor = fetch(attach.adapters, name)
        assert reply.code == pb.OK and reply.bytes == len(data) and reply.lora.name == name
        with mmap.mmap(descriptor, reply.bytes, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            assert mapped[:] == data
        with pytest.raises(OSError):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(OSError):
            mmap.mmap(descriptor, reply.bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        os.close(descriptor)
    for reference, code in (("nothing", pb.NOT_FOUND), ("../x", pb.INVALID_ARGUMENT)):
        reply, descriptor = fetch(attach.adapters, reference)
        assert reply.code == code and descriptor is None
    for name in ("map", "memory"):
        client.name(pb.LORA_EVICT, name)


# ---- room

def test_the_least_recently_used_go_before_room_is_needed(fresh):
    daemon = fresh(memory_limit_mb=4, cleanup_threshold=0.5)
    client = Client(daemon)
    events = daemon.events
    for i in range(6):
        client.put(adapter(i, unet=150_000), name=f"put-{i}")  # 600 KB; half of 4 MB has room for three
    wait_until(lambda: client.stats().totals.entries == 3, 10, "three are left")
    totals = client.stats().totals
    assert totals.bytes <= totals.limit_bytes / 2 and totals.evictions == 3
    assert [lora.name for lora in client.list()] == ["put-3", "put-4", "put-5"]
    event = events.wait_topic("lora.evicted")
    assert "put-0" in event.message and event.signal == "lora_bytes" and event.value > event.threshold > 0
    assert "put-5" in events.wait(lambda t, m: t == "lora.put" and "put-5" in m.message, 10, "the last put").message
    wait_until(lambda: daemon.status().loras.evictions == 3, 10, "the status tells")
    status = daemon.status().loras
    assert (status.entries, status.limit_bytes) == (3, 4 << 20)


def test_what_is_larger_than_the_limit_is_refused_and_evicts_nothing(fresh):
    daemon = fresh(memory_limit_mb=1)
    client = Client(daemon)
    client.put(adapter(1), name="small")
    data = adapter(2, unet=300_000)
    for message in (client.put(data, pb.RESOURCE_EXHAUSTED, name="big"),
                    client.put(code=pb.RESOURCE_EXHAUSTED, step=pb.PUT_BEGIN, hash="ab" * 32, bytes=len(data)),
                    client.encode([{"tensor": "lora.0", "strength": 1}], pb.RESOURCE_EXHAUSTED,
                                  {"lora.0": data})):
        assert str(len(data)) in message and "1048576" in message
    # Of a file only the encoders' tensors count.
    (daemon.loras / "big.safetensors").write_bytes(data)
    assert client.name(pb.LORA_PIN, "big").lora.resident
    totals = client.stats().totals
    assert totals.entries == 2 and totals.evictions == 0


def test_entries_have_a_limit_too_and_pinned_ones_stay(fresh):
    daemon = fresh(entries_max=3)
    client = Client(daemon)
    client.put(adapter(0), name="keep")
    client.name(pb.LORA_PIN, "keep")
    for i in range(1, 6):
        client.put(adapter(i), name=f"put-{i}")
    assert [lora.name for lora in client.list()] == ["keep", "put-4", "put-5"]
    for i in (4, 5):
        client.name(pb.LORA_PIN, f"put-{i}")
    assert "pinned or in use" in client.put(adapter(9), pb.RESOURCE_EXHAUSTED, name="more")


def test_what_is_not_used_for_its_time_to_live_goes(fresh):
    daemon = fresh(time_to_live_s=1)
    client = Client(daemon)
    events = daemon.events
    client.put(adapter(1), name="mine")
    client.put(adapter(2), name="kept")
    client.name(pb.LORA_PIN, "kept")
    wait_until(lambda: client.stats().totals.entries == 1, 10, "one of two goes")
    assert "time to live" in events.wait_topic("lora.evicted").message


# ---- bad input

BAD_NAMES = ["..", "../x", "a/../../x", "a\nb", "\x7f", "a\u0085b"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_away_or_break_lines_are_refused(client, name):
    for operation in (pb.LORA_HAS, pb.LORA_PIN, pb.LORA_UNPIN, pb.LORA_EVICT):
        client.name(operation, name, pb.INVALID_ARGUMENT)
    client.get(name, pb.INVALID_ARGUMENT)
    client.put(adapter(1), pb.INVALID_ARGUMENT, name=name)
    message = client.encode([{"reference": name, "strength": 1}], pb.INVALID_ARGUMENT)
    assert all(ord(c) >= 32 for c in message)
    assert client.stats().totals.entries == 0


def test_names_of_every_length_are_answered(client):
    client.has("x" * 255, pb.NOT_FOUND)
    for length in (256, 60_000):
        assert str(length) in client.has("x" * length, pb.INVALID_ARGUMENT)
    client.has("x" * 65_536, pb.INVALID_ARGUMENT)
    client.has("", pb.INVALID_ARGUMENT)


def test_a_thousand_entries_are_refused_before_anything_is_done(client, write):
    write("one.safetensors", adapter(1))
    entry = {"reference": "one", "strength": 1}
    for count, words in ((1000, "1000 times, at most 64"), (64, "64 LoRAs, at most 8"), (9, "9 LoRAs, at most 8")):
        assert words in client.encode([entry] * count, pb.INVALID_ARGUMENT)
    assert client.stats().totals.entries == 0


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30])
@pytest.mark.parametrize("field", ["strength", "strength_l", "strength_g", "scaling"])
def test_strengths_that_are_no_numbers_are_refused(client, field, value):
    message = client.encode([{"reference": "one", field: value}], pb.INVALID_ARGUMENT)
    assert "one" in message


def test_an_unknown_name_is_named_with_those_that_are_near(client, write):
    write("watercolor.safetensors", adapter(1))
    message = client.encode([{"reference": "watercolour", "strength": 1}], pb.NOT_FOUND)
    assert '"watercolour"' in message and '"watercolor"' in message
    assert "near" not in client.has("quite another thing", pb.NOT_FOUND)
    client.encode([{"reference": "ab" * 32, "strength": 1}], pb.NOT_FOUND)
    client.encode([{"reference": "watercolour", "strength": 1, "disabled": True},
                   {"reference": "watercolour", "strength": 0}])


BAD_FILES = {
    "empty": b"",
    "junk": b"this is no adapter",
    "cut": adapter(1)[:200],
    "short": adapter(1)[:-1],
    "model": pack_safetensors({"vae.weight": np.zeros((4, 4), np.float32)}),
    "nothing": with_header({}, b""),
    "zip": b"PK\x03\x04 but no zip",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_that_are_no_adapters_are_refused_by_name(client, write, kind):
    data = BAD_FILES[kind]
    write(f"bad-{kind}.safetensors", data)
    for message in (client.encode([{"reference": f"bad-{kind}", "strength": 1}], pb.INVALID_ARGUMENT),
                    client.name(pb.LORA_PIN, f"bad-{kind}", pb.INVALID_ARGUMENT),
                    client.get(f"bad-{kind}", pb.INVALID_ARGUMENT),
                    client.put(data, pb.INVALID_ARGUMENT, name=f"bad-{kind}-put")):
        assert kind == "empty" or f"bad-{kind}" in message
    client.encode([{"tensor": "lora.0", "strength": 1}], pb.INVALID_ARGUMENT, {"lora.0": data})
    client.has(f"bad-{kind}-put", pb.NOT_FOUND)
    assert client.stats().totals.entries == 0 and client.stats().totals.bytes == 0


@pytest.mark.parametrize("path", sorted((GOLDEN / "files").glob("evil_*.pt")), ids=lambda path: path.stem)
def test_pickles_that_call_anything_are_refused(client, path):
    data = path.read_bytes()
    header = request(pb.LORA_PUT, [("file", pb.U8, [len(data)], len(data))])
    answer, _ = client.raw.ask(header, pb.LoraPut(name=path.stem), data, seconds=60)
    assert answer.code in (pb.INVALID_ARGUMENT, pb.RESOURCE_EXHAUSTED) and path.stem in answer.message
    assert client.stats().totals.entries == 0


def test_a_hash_that_is_not_the_contents_is_named_with_the_true_one(client):
    data = adapter(51)
    true = client.put(data, name="true").lora.hash
    message = client.put(data, pb.INVALID_ARGUMENT, name="false", hash="cd" * 32)
    assert true in message and "cd" * 32 in message
    client.has("false", pb.NOT_FOUND)
    for wrong in ("cd", "cd" * 33, "xy" * 32):
        client.put(data, pb.INVALID_ARGUMENT, hash=wrong)
    client.put(data, pb.INVALID_ARGUMENT, name="cd" * 32)
    client.name(pb.LORA_EVICT, "true")


def test_requests_that_do_not_make_sense_are_refused(client):
    client.put(code=pb.INVALID_ARGUMENT)
    client.put(code=pb.INVALID_ARGUMENT, step=9)
    client.put(code=pb.INVALID_ARGUMENT, step=pb.PUT_BEGIN, bytes=5)
    client.put(code=pb.INVALID_ARGUMENT, step=pb.PUT_BEGIN, hash="ab" * 32)
    client.put(b"x", pb.INVALID_ARGUMENT, step=pb.PUT_BEGIN, hash="ab" * 32, bytes=5)
    client.put(code=pb.NOT_FOUND, step=pb.PUT_COMMIT, upload=12345)
    client.put(code=pb.INVALID_ARGUMENT, step=pb.PUT_CHUNK, upload=12345)
    client.put(code=pb.RESOURCE_EXHAUSTED, step=pb.PUT_BEGIN, hash="ab" * 32, bytes=1 << 62)
    client.encode([{"tensor": "lora.0", "strength": 1}], pb.INVALID_ARGUMENT)
    client.encode([], pb.INVALID_ARGUMENT, {"lora.0": adapter(1)})
    client.encode([{"tensor": "lora.0"}, {"tensor": "lora.0"}], pb.INVALID_ARGUMENT, {"lora.0": adapter(1)})


def test_a_user_has_a_bound_of_open_uploads(client):
    begun = []
    for i in range(8):
        begun.append(client.put(step=pb.PUT_BEGIN, hash=f"{i:064x}", bytes=100).upload)
    assert "8" in client.put(code=pb.RESOURCE_EXHAUSTED, step=pb.PUT_BEGIN, hash="ab" * 32, bytes=100)
    for number in begun:
        client.put(step=pb.PUT_ABORT, upload=number)


# ---- what loading costs

def sized(megabytes, seed):
    """An adapter of so many megabytes, seven tenths of them the UNet's."""
    floats = int(megabytes * (1 << 20) / 4)
    return adapter(seed, rank=int(floats * 0.3) // 320, unet=int(floats * 0.7))


def load_ms(client, name):
    """One load, as the store told it; the hash is known afterwards."""
    spent = client.name(pb.LORA_PIN, name).lora.load_ms
    client.name(pb.LORA_UNPIN, name)
    client.name(pb.LORA_EVICT, name)
    return spent


@pytest.mark.release
@pytest.mark.parametrize("suffix, megabytes, bar, first_bar", [
    ("safetensors", 2, 5, 25), ("safetensors", 100, 60, 250), ("pt", 2, 45, 65), ("pt", 100, 90, 290)])
def test_loading_is_a_matter_of_milliseconds(client, write, tmp_path, suffix, megabytes, bar, first_bar):
    """Of a torch zip the allow-list unpickler's process is a part: some milliseconds, whatever the size."""
    first, known, ratio = [], [], []
    for seed in range(3):
        data = sized(megabytes, seed)
        if suffix == "pt":
            data = write_torch(tmp_path / "sized.pt", read_safetensors(data)[0]).read_bytes()
        write(f"sized-{seed}.{suffix}", data)
        begun = time.monotonic()
        hashlib.blake2b(data, digest_size=32).digest()
        beside_ms = 1000 * (time.monotonic() - begun)
        first.append(load_ms(client, f"sized-{seed}"))
        ratio.append(first[-1] / beside_ms)
        known.append(load_ms(client, f"sized-{seed}"))
    print(f"{megabytes} MB {suffix}: first {min(first):.1f} ms, known {min(known):.2f} ms; hashing {min(ratio):.2f} x "
          "blake2b")
    assert min(known) <= bar
    # On a machine that others use, hashing takes what it takes there.
    assert min(first) <= first_bar or min(ratio) <= 2


# ---- clients that go

def test_a_client_that_goes_away_leaves_no_upload_behind_its_user_cannot_end(client, store):
    raw = Raw(store.ipc)
    header = request(pb.LORA_PUT)
    answer, rest = raw.ask(header, pb.LoraPut(step=pb.PUT_BEGIN, hash="ab" * 32, bytes=1 << 20))
    raw.close()
    begun = pb.LoraReply.FromString(rest[0]).upload
    client.put(bytes(1000), step=pb.PUT_CHUNK, upload=begun)
    client.put(step=pb.PUT_ABORT, upload=begun)


def test_requests_over_req_sockets_are_answered_too(store):
    raw = store.raw(zmq.REQ)
    answer, rest = raw.ask(request(pb.LORA_STATS))
    assert answer.code == pb.OK and pb.LoraStats.FromString(rest[0]).entries_max == 100
