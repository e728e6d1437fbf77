"""Files that are no models, lie about themselves, or would run something: refused by name, the daemon serving on."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from conftest import request
from files import pack_safetensors, random_latent, read_safetensors, with_header
from luna import luna_pb2 as pb


@pytest.fixture(scope="module")
def folder(models):
    """Where bad files may be registered from."""
    path = models / "bad"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture
def register(shared, folder):
    """Writes a file, registers it, expects the error and its words; afterwards the daemon still serves."""
    def run(name, content, *words, codes=(pb.INVALID_ARGUMENT,)):
        if content is not None:
            (folder / name).write_bytes(content)
        body = pb.ModelRegister(name="bad", files=[f"bad/{name}"])
        answer, _ = shared.raw().ask(request(pb.MODEL_REGISTER), body, seconds=30)
        assert answer.code in codes, answer
        for word in words:
            assert str(word) in answer.message, answer.message
        return answer

    yield run
    assert shared.is_serving()
    assert [model.name for model in shared.status().models] == ["demo"]


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("content", [
    b"", b"\x00", b"\x00" * 8, b"\xff" * 8, (2**63).to_bytes(8, "little") + b"{}", (100).to_bytes(8, "little") + b"{}",
    with_header(b"", b""), with_header(b"{", b""), with_header(b"[]", b""), with_header(b"\xff\xfe", b""),
    with_header(b'{"a": 1}', b""), with_header(b"[" * 100_000, b""), with_header(b'{"a":' * 20_000, b""),
    with_header({"a": entry()}, b"x" * 15), with_header({"a": entry(offsets=(0, 2**62))}, b"x" * 16),
    with_header({"a": entry(offsets=(16, 0))}, b"x" * 16), with_header({"a": entry(offsets=(-16, 0))}, b"x" * 16),
    with_header({"a": entry(), "b": entry()}, b"x" * 16), with_header({"a": entry(offsets=(4, 20))}, b"x" * 20),
    with_header({"a": entry()}, b"x" * 32), with_header({"a": entry(dtype="F99")}, b"x" * 16),
    with_header({"a": entry(shape=(2**32, 2**32, 4))}, b"x" * 16), with_header({"a": entry(shape=(-4,))}, b"x" * 16),
    with_header({"a": entry(shape=(2.5,))}, b"x" * 16), with_header({"a": entry(shape=(0,), offsets=(0, 0))}, b""),
    with_header(b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", b"x" * 16),
], ids=range(26))
def test_safetensors_that_lie(register, content):
    register("lies.safetensors", content, "lies.safetensors")


def test_a_model_cut_anywhere_is_refused(register, models):
    whole = (models / "vae.safetensors").read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for end in (1, 7, 8, 9, header, 8 + header - 1, 8 + header, len(whole) // 2, len(whole) - 1):
        register("cut.safetensors", whole[:end])


def test_a_header_above_its_limit_is_refused_before_it_is_read(register, folder):
    with open(folder / "absurd.safetensors", "wb") as file:
        file.write((1 << 40).to_bytes(8, "little"))
        file.truncate(1 << 41)  # sparse
    register("absurd.safetensors", None, "absurd.safetensors")
    (folder / "absurd.safetensors").unlink()


@pytest.mark.parametrize("name, content", [
    ("text.safetensors", b"this is a text file\n" * 100), ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(100)),
    ("other.safetensors", pack_safetensors({"unet.weight": np.zeros((4, 4), np.float32)})),
    ("noise.ckpt", os.urandom(4096)), ("empty.pt", b""),
])
def test_files_that_are_no_models(register, name, content):
    register(name, content, name)


def test_missing_tensors_are_named_the_first_three(register, models):
    tensors, _ = read_safetensors((models / "vae.safetensors").read_bytes())
    gone = sorted(name for name in tensors if name.startswith("decoder.up_blocks.1"))[:5]
    answer = register("missing.safetensors", pack_safetensors({k: v for k, v in tensors.items() if k not in gone}))
    assert sum(name in answer.message for name in gone) == 3, answer.message


def test_wrong_shapes_and_types_are_named(register, models):
    tensors, _ = read_safetensors((models / "vae.safetensors").read_bytes())
    name = "decoder.conv_in.weight"
    for wrong in (tensors[name][:, :, :1], tensors[name][:-1], tensors[name].astype(np.int32),
                  tensors[name].reshape(-1)):
        register("wrong.safetensors", pack_safetensors({**tensors, name: np.ascontiguousarray(wrong)}), name)
    clip, metadata = read_safetensors((models / "clip_l.safetensors").read_bytes())
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    register("wrong.safetensors", pack_safetensors({**clip, name: clip[name][:-1]}, metadata), name)
    register("wrong.safetensors", pack_safetensors(clip, {"luna.encoder": "x"}), "luna.encoder")


# ---- pickles


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def torch_zip(data):
    """A zip as torch.save writes it, around any pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/data/0", bytes(64))
    return out.getvalue()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_that_call_run_nothing(register, tmp_path, protocol):
    for index, call in enumerate((Call(os.system, f"touch {tmp_path}/pwned"), Call(os.mkdir, f"{tmp_path}/pwned"),
                                  Call(eval, f"open('{tmp_path}/pwned', 'w')"))):
        register("call.ckpt", torch_zip(pickle.dumps({"state_dict": call}, protocol=protocol)), "call.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [
    b"cos\nsystem\n(S'true'\ntR.", b"\x80\x02}q\x00.", b"\x80\x02" + b"(" * 100_000, b".", b"", b"\x80\x04\x8c\x02os.",
    b"\x80\x02]" + b"q\x00" * 100 + b"h\x63.", b"\x80\x02K\x01K\x02K\x03s.", b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
    b"\x80\x02X\xff\xff\xff\x7fabc.", b"\x80\x02(lp0\n" + b"(lp0\n" * 1000 + b".",
], ids=range(11))
def test_pickles_that_are_none(register, data):
    register("none.pt", torch_zip(data), codes=(pb.INVALID_ARGUMENT, pb.RESOURCE_EXHAUSTED))


def test_zips_that_lie(register):
    good = torch_zip(b"\x80\x02}q\x00.")
    for bad in (good[:-10], good[:50], good.replace(b"archive/data.pkl", b"../../../data.pk"),
                good.replace(b"PK\x01\x02", b"PK\x01\x03"), b"PK\x03\x04" + os.urandom(500),
                b"PK\x05\x06" + bytes(18)):
        register("lies.ckpt", bad, codes=(pb.INVALID_ARGUMENT, pb.RESOURCE_EXHAUSTED))


# ---- paths


def test_only_files_below_the_directories_are_read(shared, register, folder, tmp_path):
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(pack_safetensors({"latent": random_latent(1)}))
    link = folder / "link.safetensors"
    link.unlink(missing_ok=True)
    link.symlink_to(outside)
    (folder / "folder.safetensors").mkdir(exist_ok=True)
    if not (folder / "pipe.safetensors").exists():
        os.mkfifo(folder / "pipe.safetensors")
    for path in (str(outside), "../../../../../etc/passwd", "bad/../../../../etc/passwd", "/etc/passwd", "/dev/zero",
                 "bad/link.safetensors", "bad/folder.safetensors", "bad/pipe.safetensors", "bad/nothing.safetensors",
                 "", "bad/%2e%2e/x", "a" * 511):
        answer, _ = shared.raw().ask(request(pb.MODEL_REGISTER), pb.ModelRegister(name="bad", files=[path]))
        assert answer.code in (pb.INVALID_ARGUMENT, pb.NOT_FOUND, pb.PERMISSION_DENIED), (path, answer)
        assert str(tmp_path) not in answer.message or path == str(outside), answer.message
    link.unlink()
    (folder / "pipe.safetensors").unlink()


def test_names_and_lists_that_are_none(shared):
    for body in (pb.ModelRegister(), pb.ModelRegister(name="x"), pb.ModelRegister(name="a b", files=["vae.safetensors"]),
                 pb.ModelRegister(name="x" * 64, files=["vae.safetensors"]),
                 pb.ModelRegister(name="../x", files=["vae.safetensors"]),
                 pb.ModelRegister(name="x", files=["vae.safetensors"] * 9),
                 pb.ModelRegister(name="x", files=["vae.safetensors"] * 2)):
        answer, _ = shared.raw().ask(request(pb.MODEL_REGISTER), body)
        assert answer.code == pb.INVALID_ARGUMENT, (body, answer)
    assert shared.is_serving()


def test_a_configured_model_that_is_bad_does_not_keep_the_others_from_serving(make_daemon):
    daemon = make_daemon(extra="[model broken]\nfiles = bad/nothing.safetensors\n")
    assert daemon.connect().tokenize("a cat", model="demo")
    header = request(pb.MODEL_LOAD)
    answer, _ = daemon.raw().ask(header, pb.ModelName(name="broken"))
    assert answer.code != pb.OK
    broken = next(model for model in daemon.status().models if model.name == "broken")
    assert broken.state == "failed" and "nothing.safetensors" in broken.message


def test_a_file_replaced_while_it_is_used_keeps_its_answers(make_daemon, models):
    path = models / "bad" / "replaced.safetensors"
    path.write_bytes((models / "vae.safetensors").read_bytes())
    daemon = make_daemon(extra="[model mine]\nfiles = bad/replaced.safetensors\n")
    client = daemon.connect()
    before = client.decode_latent(random_latent(1), model="mine")
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(b"no model at all")
    unfinished.rename(path)
    assert client.decode_latent(random_latent(1), model="mine").tobytes() == before.tobytes()
