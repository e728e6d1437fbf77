"""Adapters in the Python package and the command line, against a daemon that does as it is told."""

import asyncio
import fcntl
import hashlib
import json
import os
import pickle
import socket
import subprocess
import sys
import threading

import numpy
import pytest

from adapters import write_torch
from conftest import BINARY, ROOT
from fake_daemon import CHUNK_BYTES, F_ADD_SEALS, F_SEAL_SHRINK, FakeDaemon, Shelf
from files import pack_safetensors

import luna
import luna.aio
from luna import loras
from luna import luna_pb2 as pb

CLIENT = ROOT / "clients" / "python"
KEY = "lora_te_text_model_encoder_layers_0_mlp_fc1"


@pytest.fixture
def fake(tmp_path):
    with FakeDaemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def sharing(tmp_path):
    with FakeDaemon(tmp_path, leases=True) as daemon:
        yield daemon


def adapter(seed=0, rank=4, width=64):
    """A state dict of one module in kohya's naming."""
    random = numpy.random.default_rng(seed)
    return {
        f"{KEY}.lora_down.weight": random.standard_normal((rank, width)).astype("f4"),
        f"{KEY}.lora_up.weight": random.standard_normal((4 * width, rank)).astype("f2"),
        f"{KEY}.alpha": numpy.array(2.0, "f4"),
    }


def large():
    """More than two chunks."""
    return adapter(rank=128, width=640)


def write(path, tensors):
    path.write_bytes(pack_safetensors(tensors))
    return path


def hash_of(tensors):
    """The contract's hash, written down once more."""
    state = hashlib.blake2b(digest_size=32)
    names = {"<f4": b"F32", "<f2": b"F16"}
    for name in sorted(tensors, key=str.encode):
        array = numpy.asarray(tensors[name])
        kind = names[array.dtype.str]
        state.update(len(name).to_bytes(4, "little") + name.encode())
        state.update(len(kind).to_bytes(4, "little") + kind)
        state.update(array.ndim.to_bytes(4, "little"))
        for size in array.shape:
            state.update(size.to_bytes(8, "little"))
        state.update(array.nbytes.to_bytes(8, "little") + array.tobytes())
    return state.hexdigest()


# ---- hashes


def test_the_hash_is_that_of_the_contract_whatever_the_file(tmp_path):
    tensors = adapter()
    expected = hash_of(tensors)
    known = loras.Hashes()
    shuffled = dict(reversed(tensors.items()))
    assert loras.StateDict(tensors).hash() == expected
    assert known.of(write(tmp_path / "a.safetensors", tensors)) == expected
    assert known.of(write(tmp_path / "b.safetensors", shuffled)) == expected
    assert known.of(write_torch(tmp_path / "c.pt", tensors)) == expected
    assert hash_of({**tensors, f"{KEY}.alpha": numpy.array(3.0, "f4")}) != expected


def test_what_torch_saves_has_the_same_hash(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in adapter().items()}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "x.pt")
    assert loras.Hashes().of(tmp_path / "x.pt") == hash_of(adapter())
    assert loras.StateDict(tensors).hash() == hash_of(adapter())
    half = {"x": torch.arange(6).reshape(2, 3).to(torch.bfloat16)}
    back = luna.state_dict(loras.StateDict(half).read(), torch=True)
    assert torch.equal(back["x"], half["x"])


def test_a_file_is_hashed_again_when_it_changed(tmp_path):
    known = loras.Hashes()
    path = write(tmp_path / "a.safetensors", adapter(1))
    assert known.of(path) == hash_of(adapter(1))
    other = write(tmp_path / "b.safetensors", adapter(2))
    other.rename(path)
    assert known.of(path) == hash_of(adapter(2))


def test_a_pickle_that_calls_anything_is_refused(tmp_path):
    path = write_torch(tmp_path / "x.pt", adapter(), extra=b"cos\nsystem\n(X\x04\x00\x00\x00truetR0")
    with pytest.raises(ValueError, match="os.system, which is not allowed"):
        loras.Hashes().of(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"12345678",
        (8).to_bytes(8, "little") + b"no json!",
        (2**63).to_bytes(8, "little") + b"{}",
        b"PK\x03\x04 and no more",
        pack_safetensors({"x": numpy.zeros(4, "f4")})[:-1],
    ],
    ids=["empty", "short", "no json", "long header", "no zip", "cut"],
)
def test_a_file_that_is_none_is_refused(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError):
        loras.Hashes().of(path)


# ---- put, get, list


def test_a_state_dict_goes_up_in_chunks_and_comes_back(fake):
    shelf = Shelf(fake)
    told = []
    with luna.connect(fake.endpoint) as daemon:
        name = daemon.put_lora(large(), "big", progress=lambda done, total: told.append((done, total)))
        assert name == "big"
        data = daemon.get_lora("big")
        back = luna.state_dict(data)
    size = len(shelf.files[hash_of(large())][1])
    assert size > 2 * CHUNK_BYTES
    count = -(-size // CHUNK_BYTES)
    assert shelf.steps == [pb.PUT_BEGIN, *[pb.PUT_CHUNK] * count, pb.PUT_COMMIT]
    assert told[-1] == (size, size) and len(told) == count
    assert len(data) == size and set(back) == set(large())
    for key, array in large().items():
        numpy.testing.assert_array_equal(back[key], array)
        assert back[key].dtype == array.dtype and back[key].shape == array.shape
    references = [pb.LoraGet.FromString(r.body).reference for r in fake.requests[pb.LORA_GET]]
    assert references[0] == "big" and set(references[1:]) == {hash_of(large())}


def test_chunks_go_through_shared_memory_when_they_are_large(sharing):
    shelf = Shelf(sharing)
    with luna.connect(sharing.endpoint) as daemon:
        assert daemon.put_lora(large()) == hash_of(large())
        assert len(luna.state_dict(daemon.get_lora(hash_of(large())))) == 3
    assert sharing.leases.granted >= 2 and sharing.leases.held == {}
    assert hash_of(large()) in shelf.files


def test_what_the_daemon_has_moves_no_bytes(fake, tmp_path):
    shelf = Shelf(fake)
    path = write(tmp_path / "a.safetensors", adapter())
    with luna.connect(fake.endpoint) as daemon:
        assert daemon.put_lora(path) == hash_of(adapter())
        shelf.steps.clear()
        assert daemon.put_lora(adapter(), "again") == "again"
        assert daemon.put_lora(str(path)) == hash_of(adapter())
    assert shelf.steps == [pb.PUT_BEGIN, pb.PUT_BEGIN]


def test_a_file_that_cannot_be_read_any_more_is_taken_back(fake, tmp_path):
    shelf = Shelf(fake)
    path = write(tmp_path / "a.safetensors", adapter())

    def put(request):
        path.unlink(missing_ok=True)
        shelf._put(request)

    fake.on[pb.LORA_PUT] = put
    with luna.connect(fake.endpoint) as daemon:
        with pytest.raises(FileNotFoundError):
            daemon.put_lora(path)
    assert shelf.steps == [pb.PUT_BEGIN, pb.PUT_ABORT]


def test_an_upload_that_the_daemon_lost_is_begun_once_more(fake):
    shelf = Shelf(fake)
    shelf.lose_uploads = 1
    with luna.connect(fake.endpoint) as daemon:
        daemon.put_lora(large())
        assert shelf.steps.count(pb.PUT_BEGIN) == 2
        shelf.files.clear()
        shelf.lose_uploads = 2
        with pytest.raises(luna.NotFound):
            daemon.put_lora(large())


def test_a_refused_upload_is_taken_back(fake):
    shelf = Shelf(fake)

    def put(request):
        step = pb.LoraPut.FromString(request.body).step
        if step == pb.PUT_CHUNK:
            request.fail(pb.RESOURCE_EXHAUSTED, "larger than the limit")
        else:
            shelf._put(request)

    fake.on[pb.LORA_PUT] = put
    with luna.connect(fake.endpoint) as daemon:
        with pytest.raises(luna.ResourceExhausted, match="larger than the limit"):
            daemon.put_lora(adapter())
    assert shelf.steps == [pb.PUT_BEGIN, pb.PUT_ABORT]


def test_what_is_no_adapter_is_said_before_anything_is_sent(fake, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with luna.connect(fake.endpoint) as daemon:
        with pytest.raises(TypeError, match="int"):
            daemon.put_lora(3)
        with pytest.raises(FileNotFoundError):
            daemon.put_lora(tmp_path / "none.safetensors")
        with pytest.raises(ValueError):
            daemon.put_lora(tmp_path / "x.safetensors")
        with pytest.raises(TypeError, match="complex"):
            daemon.put_lora({"x": numpy.zeros(3, complex)})
    assert not fake.requests[pb.LORA_PUT]


def test_a_file_appears_whole_or_not_at_all(fake, tmp_path):
    shelf = Shelf(fake)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"before")
    with luna.connect(fake.endpoint) as daemon:
        daemon.put_lora(large(), "big")
        assert daemon.get_lora("big", out) == out
        assert out.read_bytes() == shelf.files[hash_of(large())][1]
        assert out.stat().st_mode & 0o600 == 0o600
        with pytest.raises(luna.NotFound, match="none"):
            daemon.get_lora("none", tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["luna.sock", "out.safetensors"]


def test_lists_are_read_page_by_page_and_have_what_scripts_rely_on(fake):
    Shelf(fake)
    fake.on[pb.LORA_STATS] = lambda request: request.reply(
        pb.LoraStats(totals=pb.LoraTotals(entries=5, hit_ratio=0.5), load_ms_p50=1.5)
    )
    fake.on[pb.LORA_SCAN] = lambda request: request.reply(pb.LoraScanReply(found=3))
    with luna.connect(fake.endpoint) as daemon:
        for seed in range(5):
            daemon.put_lora(adapter(seed), f"style-{seed}")
        listed = daemon.loras()
        assert sorted(entry["name"] for entry in listed) == [f"style-{i}" for i in range(5)]
        assert {"name", "hash", "encoder_hash", "bytes", "format", "path", "rank", "encoders", "uses",
                "load_ms", "age_seconds", "pinned", "resident"} <= set(listed[0])
        assert daemon.lora("style-1")["hash"] == hash_of(adapter(1))
        assert daemon.pin_lora("style-1")["name"] == "style-1"
        stats = daemon.lora_stats()
        assert (stats["entries"], stats["hit_ratio"], stats["load_ms_p50"]) == (5, 0.5, 1.5)
        assert daemon.scan_loras()["found"] == 3
        with pytest.raises(luna.NotFound):
            daemon.lora("none")


# ---- on the same machine


def serve_adapter(path, data, sealed):
    """An adapter socket that answers once; returns its thread."""
    descriptor = os.memfd_create("adapter", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, data)
    if sealed:
        fcntl.fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | 4 | 8)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()

    def serve():
        connection, _ = listener.accept()
        with connection, listener:
            request = pb.AdapterRequest.FromString(connection.recv(4096))
            reply = pb.AdapterReply(bytes=len(data), lora=pb.Lora(name=request.reference))
            socket.send_fds(connection, [reply.SerializeToString()], [descriptor])
        os.close(descriptor)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("sealed", [True, False])
def test_a_daemon_on_the_same_machine_hands_the_file_over(sharing, tmp_path, sealed):
    sharing.adapters_path = f"{tmp_path}/adapters.sock"
    data = pack_safetensors(adapter())
    thread = serve_adapter(sharing.adapters_path, data, sealed)
    with luna.connect(sharing.endpoint) as daemon:
        view = daemon.get_lora("style")
    thread.join(5)
    assert view == data and view.readonly
    numpy.testing.assert_array_equal(
        luna.state_dict(view)[f"{KEY}.lora_down.weight"], adapter()[f"{KEY}.lora_down.weight"]
    )
    assert not sharing.requests[pb.LORA_GET]


def test_without_an_adapter_socket_the_file_comes_in_pieces(sharing, tmp_path):
    Shelf(sharing)
    sharing.adapters_path = f"{tmp_path}/nobody.sock"
    with luna.connect(sharing.endpoint) as daemon:
        daemon.put_lora(adapter(), "style")
        assert len(luna.state_dict(daemon.get_lora("style"))) == 3
    assert sharing.requests[pb.LORA_GET]


# ---- stacks


def references(request):
    return [entry.reference for entry in pb.EncodeText.FromString(request.body).loras]


def test_what_is_here_is_uploaded_when_the_daemon_lacks_it_and_asked_for_again(fake, tmp_path):
    shelf = Shelf(fake)
    path = write(tmp_path / "a.safetensors", adapter(1))
    with luna.connect(fake.endpoint) as daemon:
        daemon.put_lora(adapter(0), "known")
        stack = ["known", (path, 0.8), {"reference": adapter(2), "strength_l": 0.5}]
        result = daemon.encode_text("a cat", loras=stack)
        assert [use["modules"] for use in result.loras] == [12, 12, 12]
        again = daemon.encode_text("a dog", loras=stack)
    assert not again.cached and len(again.loras) == 3
    asked = fake.requests[pb.ENCODE_TEXT]
    expected = ["known", hash_of(adapter(1)), hash_of(adapter(2))]
    assert [references(request) for request in asked] == [expected] * 3
    assert len({request.header.id for request in asked}) == 3
    entries = pb.EncodeText.FromString(asked[0].body).loras
    assert [round(entry.strength, 3) for entry in entries] == [1.0, 0.8, 1.0]
    assert entries[2].strength_l == 0.5
    assert shelf.steps.count(pb.PUT_COMMIT) == 3


def test_a_name_that_nobody_knows_is_the_answer_and_not_asked_twice(fake):
    Shelf(fake)
    with luna.connect(fake.endpoint) as daemon:
        with pytest.raises(luna.NotFound, match="nothing"):
            daemon.encode_text("a cat", loras=[("nothing", 0.5)])
    assert len(fake.requests[pb.ENCODE_TEXT]) == 1


def test_a_bare_name_is_the_daemons_before_it_is_a_file_of_ours(fake, tmp_path, monkeypatch):
    shelf = Shelf(fake)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "style", adapter(1))
    with luna.connect(fake.endpoint) as daemon:
        daemon.encode_text("a cat", loras=["style"])
        assert [references(r) for r in fake.requests[pb.ENCODE_TEXT]] == [["style"], [hash_of(adapter(1))]]
        shelf.files.clear()
        daemon.put_lora(adapter(2), "style")
        daemon.encode_text("a cat", loras=["style"])
        assert references(fake.requests[pb.ENCODE_TEXT][-1]) == ["style"]


def test_one_shots_travel_with_the_request(fake, tmp_path):
    shelf = Shelf(fake)
    path = write(tmp_path / "a.safetensors", adapter(1))
    with luna.connect(fake.endpoint) as daemon:
        daemon.put_lora(adapter(0), "known")
        daemon.encode_text("a cat", loras=[path, "known", (adapter(2), -0.5)], one_shot=True)
    request = fake.requests[pb.ENCODE_TEXT][0]
    entries = pb.EncodeText.FromString(request.body).loras
    assert [(e.reference, e.tensor, e.strength) for e in entries] == [
        ("a.safetensors", "lora.0", 1.0), ("known", "", 1.0), ("", "lora.1", -0.5)]
    assert request.tensor("lora.0") == path.read_bytes()
    assert luna.state_dict(request.tensor("lora.1")).keys() == adapter(2).keys()
    assert shelf.steps.count(pb.PUT_BEGIN) == 1


def test_more_one_shots_than_a_message_holds_are_an_error(fake):
    with luna.connect(fake.endpoint) as daemon:
        with pytest.raises(ValueError, match="9 tensors, at most 8"):
            daemon.encode_text("a cat", loras=[adapter(i) for i in range(8)], one_shot=True)


@pytest.mark.parametrize(
    "wrong, error",
    [("style", TypeError), ([("a", 1, 2)], ValueError), ([3], TypeError),
     ([{"reference": "a", "force": 1}], ValueError), (adapter(), TypeError)],
    ids=["a string", "three", "a number", "a field", "a state dict"],
)
def test_a_stack_that_is_none_is_said(fake, wrong, error):
    with luna.connect(fake.endpoint) as daemon:
        with pytest.raises(error):
            daemon.encode_text("a cat", loras=wrong)
    assert not fake.requests[pb.ENCODE_TEXT]


def test_a_conversation_ends_at_its_deadline(fake):
    Shelf(fake)
    fake.on[pb.LORA_PUT] = lambda request: None
    with luna.connect(fake.endpoint) as daemon:
        with pytest.raises(luna.DeadlineExceeded):
            daemon.encode_text("a cat", loras=[adapter()], timeout=0.3)


def test_asyncio_uploads_and_encodes_alike(fake):
    shelf = Shelf(fake)

    async def run():
        async with await luna.aio.connect(fake.endpoint) as daemon:
            assert await daemon.put_lora(large(), "big") == "big"
            results = await asyncio.gather(
                *(daemon.encode_text("a cat", loras=["big", (adapter(i), 0.5)]) for i in range(4)))
            assert [len(result.loras) for result in results] == [2] * 4
            assert len(await daemon.loras()) == 5
            assert luna.state_dict(await daemon.get_lora("big")).keys() == large().keys()
            with pytest.raises(luna.NotFound):
                await daemon.encode_text("a cat", loras=["nothing"])
            assert await daemon.models() == []

    fake.on[pb.MODEL_LIST] = lambda request: request.reply(pb.ModelListReply())
    asyncio.run(run())
    assert len(shelf.files) == 5


# ---- the command line, whose hash is that of another language


def cli(fake, *words, **options):
    return subprocess.run([BINARY, *map(str, words), "--connect", fake.endpoint], capture_output=True,
                          timeout=60, **options)


@pytest.mark.parametrize("make", [write, write_torch])
def test_luna_loras_put_computes_the_same_hash(fake, tmp_path, make):
    shelf = Shelf(fake)
    path = make(tmp_path / "adapter.file", large())  # what it is, its content tells
    done = cli(fake, "loras", "put", path, "--name", "big", "--json")
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)
    assert (entry["name"], entry["hash"]) == ("big", hash_of(large()))
    assert shelf.files[hash_of(large())] == ("big", path.read_bytes())
    done = cli(fake, "loras", "put", "-", "--json", stdin=open(path, "rb"))
    assert done.returncode == 0 and b"nothing was sent" in done.stderr, done.stderr
    assert shelf.steps.count(pb.PUT_COMMIT) == 1


def test_luna_loras_get_writes_a_file_or_stdout(fake, tmp_path):
    shelf = Shelf(fake)
    data = pack_safetensors(large())
    shelf.files[hash_of(large())] = ("big", data)
    assert cli(fake, "loras", "get", "big", "-o", tmp_path / "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == data
    assert cli(fake, "loras", "get", "big", "-o", "-").stdout == data
    done = cli(fake, "loras", "get", "none", "-o", tmp_path / "none")
    assert (done.returncode, done.stderr) == (1, b'luna: NOT_FOUND: LoRA "none" is not known here\n')
    assert sorted(path.name for path in tmp_path.glob("*n*")) == ["luna.sock"]


def test_luna_loras_list_prints_every_page(fake):
    shelf = Shelf(fake)
    for seed in range(5):
        shelf.files[hash_of(adapter(seed))] = (f"style-{seed}", pack_safetensors(adapter(seed)))
    listed = json.loads(cli(fake, "loras", "--json").stdout)
    assert len(listed) == 5
    assert list(listed[0])[:13] == ["name", "hash", "encoder_hash", "bytes", "format", "path", "rank", "encoders",
                                    "uses", "load_ms", "age_seconds", "pinned", "resident"]
    assert len(cli(fake, "loras", "list").stdout.splitlines()) == 6


@pytest.mark.parametrize("word, reference, strength", [
    ("style", "style", 1.0), ("style:0.8", "style", 0.8), ("style:-.5", "style", -0.5),
    ("sub/style.safetensors:2", "sub/style.safetensors", 2.0), ("a:b", "a:b", 1.0),
    ("a:b:1e-1", "a:b", 0.1), ("C:\\x.safetensors", "C:\\x.safetensors", 1.0), ("a" * 64 + ":1", "a" * 64, 1.0),
])
def test_luna_text_splits_the_strength_from_the_name(fake, tmp_path, word, reference, strength):
    shelf = Shelf(fake)
    shelf.files["f" * 64] = (reference, b"")
    done = cli(fake, "text", "a cat", "--lora", word, "--lora-multiplier", "0.5", "-o", tmp_path / "x", "--json")
    assert done.returncode == 0, done.stderr
    body = pb.EncodeText.FromString(fake.requests[pb.ENCODE_TEXT][0].body)
    assert [(e.reference, round(e.strength, 6)) for e in body.loras] == [(reference, strength)]
    assert body.lora_multiplier == 0.5
    answer = json.loads(done.stdout)
    assert answer["loras"][0]["modules"] == 12 and answer["loras"][0]["reference"] == reference


def test_luna_text_uploads_the_files_that_the_daemon_lacks(fake, tmp_path):
    shelf = Shelf(fake)
    path = write(tmp_path / "one.safetensors", adapter(1))
    write(tmp_path / "bare", adapter(2))
    words = ["text", "a cat", "--lora", f"{path}:0.7", "--lora", "bare:-1", "-o", "cond.safetensors"]
    done = cli(fake, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(shelf.files) == {hash_of(adapter(1)), hash_of(adapter(2))}
    asked = fake.requests[pb.ENCODE_TEXT]
    assert [references(request) for request in asked] == [
        [hash_of(adapter(1)), "bare"], [hash_of(adapter(1)), hash_of(adapter(2))]]
    data = (tmp_path / "cond.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    told = json.loads(header["__metadata__"]["loras"])
    assert [(entry["reference"], entry["strength"]) for entry in told] == [
        (str(path), pytest.approx(0.7)), ("bare", -1.0)]


def test_luna_text_says_what_is_missing(fake, tmp_path):
    Shelf(fake)
    done = cli(fake, "text", "a cat", "--lora", "nothing:0.5", "-o", tmp_path / "x")
    assert (done.returncode, done.stderr) == (1, b'luna: NOT_FOUND: LoRA "nothing" is not known here\n')
    done = cli(fake, "text", "a cat", "--lora", "./nothing.pt:0.5", "-o", tmp_path / "x")
    assert done.returncode == 1
    assert done.stderr == b'luna: NOT_FOUND: LoRA "./nothing.pt" is not known here, and no file here\n'
    assert not (tmp_path / "x").exists()


def test_nothing_is_uploaded_for_a_model_that_the_daemon_lacks(fake, tmp_path):
    Shelf(fake)
    fake.on[pb.ENCODE_TEXT] = lambda request: request.fail(pb.NOT_FOUND, 'model "none" is not known here')
    path = write(tmp_path / "one.safetensors", adapter(1))
    done = cli(fake, "text", "a cat", "--model", "none", "--lora", path, "-o", tmp_path / "x")
    assert (done.returncode, done.stderr) == (1, b'luna: NOT_FOUND: model "none" is not known here\n')
    with luna.connect(fake.endpoint) as client, pytest.raises(luna.NotFound, match='^model "none"'):
        client.encode_text("a cat", model="none", loras=[path, adapter(2)])
    assert pb.LORA_PUT not in fake.requests or not fake.requests[pb.LORA_PUT]
    assert len(fake.requests[pb.ENCODE_TEXT]) == 2


@pytest.mark.parametrize("words", [
    ["put"], ["put", "a", "b"], ["get", "a"], ["get", "-o", "x"], ["pin"], ["scan", "x"], ["stats", "x"],
    ["explode"], ["list", "--name", "x"], ["pin", "a", "-o", "x"], ["get", "a", "-o", "-", "--json"],
    ["evict", "a" * 256],
])
def test_wrong_usage_of_luna_loras_ends_with_2(words):
    done = subprocess.run([BINARY, "loras", *words], capture_output=True, timeout=20)
    assert done.returncode == 2 and done.stdout == b"" and done.stderr.startswith(b"luna: loras: "), done


def test_the_example_without_the_package_works(fake, tmp_path):
    Shelf(fake)
    path = write(tmp_path / "x.safetensors", adapter())
    environment = {**os.environ, "LUNA_ENDPOINT": fake.endpoint, "PYTHONPATH": str(CLIENT / "luna")}
    done = subprocess.run([sys.executable, CLIENT / "examples" / "raw_lora.py", "a cat", path, "0.5"],
                          env=environment, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "cond [1, 77, 8] F32\nchanged 12 tensors\n"), done.stderr
    request = fake.requests[pb.ENCODE_TEXT][0]
    assert request.tensor("lora.0") == path.read_bytes()
    assert pb.EncodeText.FromString(request.body).loras[0].strength == 0.5
