"""Makes the files that the tests of models/files and models/model.c read, and what is in them.

Run with the reference environment: python tests/golden/make_files.py
Writes the seeds of two fuzzers to tests/fuzz/corpus/, and tests/golden/files/: tiny models in every dialect of names, torch files as torch.save writes
them, torch files as an attacker would, and expected.json. Names are converted here by rules of
their own, and hashes come from hashlib: nothing of the daemon's code is used.
"""
import collections
import hashlib
import io
import json
import pathlib
import struct
import sys
import types
import zipfile

import numpy
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

FOLDER = pathlib.Path(__file__).parent / "files"
SEEDS = pathlib.Path(__file__).parent.parent / "fuzz" / "corpus"
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8",
          torch.int32: "I32", torch.int64: "I64", torch.float64: "F64", torch.int8: "I8",
          torch.int16: "I16", torch.bool: "BOOL"}
expected = {"tables": {}, "parts": {}, "errors": {}}


def raw(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def content_hash(tensors):
    """The canonical form of the interface."""
    state = hashlib.blake2b(digest_size=32)
    for key in sorted(tensors, key=lambda k: k.encode()):
        tensor = tensors[key]
        name = key.encode()
        dtype = DTYPES[tensor.dtype].encode()
        data = raw(tensor.reshape(-1))
        state.update(struct.pack("<I", len(name)) + name + struct.pack("<I", len(dtype)) + dtype)
        state.update(struct.pack("<I", tensor.dim()) + struct.pack(f"<{tensor.dim()}Q", *tensor.shape))
        state.update(struct.pack("<Q", len(data)) + data)
    return state.hexdigest()


def expect_table(file, tensors):
    expected["tables"][file] = {
        "hash": content_hash(tensors),
        "tensors": {k: {"dtype": DTYPES[t.dtype], "dims": list(t.shape)} for k, t in tensors.items()}}


# -------------------------------------------------------------------------------------------------
# Tiny models


def randomized(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    return {k: v.half().contiguous() for k, v in model.state_dict().items() if "position_ids" not in k}


def make_clip(projection, layers, mlp=96):
    config = CLIPTextConfig(vocab_size=40, hidden_size=64, intermediate_size=mlp, num_attention_heads=1,
                            num_hidden_layers=layers, max_position_embeddings=8, projection_dim=projection or 64)
    return randomized((CLIPTextModelWithProjection if projection else CLIPTextModel)(config))


def to_ldm(tensors, levels):
    out = {}
    for key, tensor in tensors.items():
        part = key.split(".")
        if part[1:2] == ["mid_block"]:
            if part[2] == "resnets":
                part[1:4] = ["mid", f"block_{int(part[3]) + 1}"]
            else:
                names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
                leaf = part[-1]
                if part[4] != "group_norm" and leaf == "weight":
                    tensor = tensor[:, :, None, None].contiguous()
                part = [part[0], "mid", "attn_1", names[part[4]], leaf]
        elif part[1:2] in (["down_blocks"], ["up_blocks"]):
            up = part[1] == "up_blocks"
            level = levels - 1 - int(part[2]) if up else int(part[2])
            head = [part[0], "up" if up else "down", str(level)]
            if part[3] == "resnets":
                part = head + ["block"] + part[4:]
            else:
                part = head + ["upsample" if up else "downsample"] + part[5:]
        out[".".join({"conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out"}.get(p, p)
                     for p in part)] = tensor
    return out


def to_old_attention(tensors):
    names = {"to_q": "query", "to_k": "key", "to_v": "value"}
    return {".".join(names.get(p, p) for p in k.replace("to_out.0", "proj_attn").split(".")): v
            for k, v in tensors.items()}


def to_open_clip(tensors, layers):
    out = {"positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
           "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
           "text_projection": tensors["text_projection.weight"].t().contiguous(),
           "logit_scale": torch.tensor(4.6)}
    for leaf in ("weight", "bias"):
        out[f"ln_final.{leaf}"] = tensors[f"text_model.final_layer_norm.{leaf}"]
        for i in range(layers):
            source = f"text_model.encoder.layers.{i}."
            target = f"transformer.resblocks.{i}."
            out[f"{target}attn.in_proj_{leaf}"] = torch.cat(
                [tensors[f"{source}self_attn.{x}_proj.{leaf}"] for x in "qkv"])
            for a, b in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"),
                         ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):
                out[f"{target}{b}.{leaf}"] = tensors[f"{source}{a}.{leaf}"]
    return out


def prefixed(prefix, tensors):
    return {prefix + k: v.clone() for k, v in tensors.items()}


def make_models():
    vae = randomized(AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, block_out_channels=(4, 8), layers_per_block=1,
        latent_channels=4, norm_num_groups=4, sample_size=16))
    l, g, h = make_clip(0, 2, 32), make_clip(32, 1), make_clip(48, 1)
    for name, tensors in (("vae", vae), ("clip_l", l), ("clip_g", g), ("clip_h", h)):
        expected["parts"][name] = content_hash(tensors)
    ldm = prefixed("first_stage_model.", to_ldm(vae, 2))
    unet = {"model.diffusion_model.out.2.bias": torch.zeros(4).half(),
            "model_ema.decay": torch.tensor(0.5)}
    save_file(vae, FOLDER / "vae.safetensors")
    save_file(to_old_attention(vae), FOLDER / "vae_old.safetensors")
    save_file(l, FOLDER / "clip_l.safetensors")
    save_file(g, FOLDER / "clip_g.safetensors")
    save_file(ldm | unet | prefixed("conditioner.embedders.0.transformer.", l) |
              prefixed("conditioner.embedders.1.model.", to_open_clip(g, 1)), FOLDER / "sdxl.safetensors")
    position_ids = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(8)[None]}
    torch.save({"epoch": 3, "global_step": numpy.float64(7.5), "state_dict": collections.OrderedDict(
        ldm | position_ids | prefixed("cond_stage_model.transformer.", l))}, FOLDER / "sd15.ckpt")
    save_file(prefixed("cond_stage_model.model.", to_open_clip(h, 1)), FOLDER / "sd2.safetensors")
    save_file(prefixed("conditioner.embedders.0.model.", to_open_clip(g, 1)), FOLDER / "refiner.safetensors")


# -------------------------------------------------------------------------------------------------
# Tables


def make_tables():
    generator = torch.Generator().manual_seed(5)
    tensors = {"bool": torch.tensor([True, False, True]), "scalar": torch.tensor(3.25),
               "empty": torch.zeros(0, 4), "odd": torch.arange(7, dtype=torch.uint8),
               "half": torch.randn(3, 5, generator=generator).half(),
               "brain": torch.randn(2, 2, 2, generator=generator).bfloat16(),
               "double": torch.randn(3, generator=generator).double(),
               "Ünïcode \"quoted\"": torch.arange(3), "int": torch.arange(-2, 3, dtype=torch.int32),
               "short": torch.arange(3, dtype=torch.int16), "char": torch.arange(3, dtype=torch.int8)}
    save_file(tensors, FOLDER / "table.safetensors", metadata={"ünï": "cödé"})
    expect_table("table.safetensors", tensors)

    torch.save(tensors, FOLDER / "plain.pt")
    expect_table("plain.pt", tensors)

    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(module.state_dict(), FOLDER / "module.pth")
    expect_table("module.pth", dict(module.state_dict()))
    parameters = {k: v for k, v in module.named_parameters()}
    torch.save(parameters, FOLDER / "parameters.pt")
    expect_table("parameters.pt", {k: v.detach() for k, v in parameters.items()})

    vector = torch.randn(2, 8, generator=generator)
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vector}, "name": "fox",
                "step": 500, "sd_checkpoint": None}, FOLDER / "embedding.pt")
    expect_table("embedding.pt", {"string_to_param.*": vector})
    torch.save([{"a": vector}, vector[1]], FOLDER / "list.bin")
    expect_table("list.bin", {"0.a": vector, "1": vector[1]})
    torch.save(vector, FOLDER / "tensor.pt", pickle_protocol=4)
    expect_table("tensor.pt", {"tensor": vector})
    tied = torch.randn(6, 4, generator=generator)
    torch.save({"whole": tied, "again": tied, "rows": tied[2:4]}, FOLDER / "tied.pt")
    expect_table("tied.pt", {"whole": tied, "again": tied, "rows": tied[2:4]})

    # What Lightning's trainer leaves in the first checkpoints of Stable Diffusion: a class as a key.
    names = "pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    callback = type("ModelCheckpoint", (), {"__module__": names[2]})
    sys.modules[names[2]].ModelCheckpoint = callback
    torch.save({"state_dict": {"w": vector}, "callbacks": {callback: {"best": torch.tensor(0.5), "dirpath": "x"}},
                "pytorch-lightning_version": "1.4.2"}, FOLDER / "lightning.ckpt")
    for name in names:
        del sys.modules[name]
    expect_table("lightning.ckpt", {"w": vector})


# -------------------------------------------------------------------------------------------------
# Files that must be refused, with a part of the sentence


def refuse(file, message):
    expected["errors"][file] = message


def write_zip(file, data, storages=(b"\0" * 16,), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(FOLDER / file, "w", compression) as out:
        out.writestr(zipfile.ZipInfo("a/data.pkl"), data, compression)
        for i, storage in enumerate(storages):
            out.writestr(zipfile.ZipInfo(f"a/data/{i}"), storage, compression)


PERSISTENT = (b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ")


def seed(target, name, data):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def make_seeds():
    def file(name, header, data=b""):
        seed("safetensors", name, struct.pack("<Q", len(header)) + header + data)

    one = b'"a":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]}'
    file("empty", b"{}")
    file("one", b"{" + one + b"}  ", b"abcd")
    file("two", b'{"__metadata__":{"k":"v"},' + one +
         b',"b.\\u00fc":{"dtype":"F8_E5M2","shape":[],"data_offsets":[4,5]}}', b"abcde")
    file("overlap", b"{" + one + b',"b":{"dtype":"U8","shape":[3],"data_offsets":[3,6]}}', b"abcdef")
    file("none", b'{"n":{"dtype":"I64","shape":[0,9223372036854775807],"data_offsets":[0,0]}}')
    file("nested", b'{"a":[{"b":[[]]}]}')
    for name in ("good.pt", "embedding.pt", "evil_twice.pt", "evil_moved.pt", "evil_compressed.pt"):
        seed("torch_zip", name, (FOLDER / name).read_bytes())
    for name in ("module.pth", "parameters.pt", "list.bin", "tensor.pt"):
        with zipfile.ZipFile(FOLDER / name) as archive:
            pickled = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            seed("torch_zip", name + ".pickle", archive.read(pickled))


def tensor_pickle(storage=PERSISTENT, offset=b"K\0", dims=b"K\x04\x85", strides=b"K\x01\x85"):
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + dims + strides +
            b"\x89ccollections\nOrderedDict\n)RtR")


def dict_of(value):
    return b"\x80\x02}X\x01\0\0\0w" + value + b"s."


def make_evil():
    def evil(file, data, message, **options):
        write_zip(f"evil_{file}.pt", data, **options)
        seed("torch_zip", f"{file}.pickle", data)
        refuse(f"evil_{file}.pt", message)

    shell = b"X\x09\0\0\0echo evil\x85R."
    evil("global", b"\x80\x02cos\nsystem\n" + shell, "os.system")
    evil("stack_global", b"\x80\x04\x8c\x02os\x8c\x06system\x93" + shell, "os.system")
    evil("builtins", b"\x80\x02c__builtin__\neval\n" + shell, "__builtin__.eval")
    evil("attribute", b"\x80\x04\x8c\x05torch\x8c\x0dhub.load_file\x93.", "torch.hub.load_file")
    evil("reduce", b"\x80\x02K\x01)R.", "calls what is not a function")
    evil("storage_call", b"\x80\x02ctorch\nFloatStorage\n)R.", "torch.FloatStorage")
    evil("build", b"\x80\x02]}b.", "BUILD")
    evil("setitem", b"\x80\x02]K\x01K\x02s.", "dictionary")
    evil("append", b"\x80\x02}K\x01a.", "list")
    evil("instance", b"\x80\x02(ios\nsystem\n.", "0x69")
    evil("object", b"\x80\x02(cos\nsystem\no.", "os.system")
    evil("newobj", b"\x80\x02ccollections\nOrderedDict\n)\x81.", "0x81")
    evil("extension", b"\x80\x02\x82\x01.", "0x82")
    evil("memo", b"\x80\x02Nr\xff\xff\xff\xff.", "4294967295")
    evil("recall", b"\x80\x02h\x05.", "recalls number 5")
    evil("marks", b"\x80\x02" + b"(" * 5000 + b".", "nests deeper")
    evil("underflow", b"\x80\x020.", "empty stack")
    evil("below_mark", b"\x80\x02K\x01K\x02(0.", "empty stack")
    evil("cut", b"\x80\x02X\xff\xff\xff\x7fab", "operand")
    evil("protocol", b"\x80\x06N.", "protocol")
    evil("cycle", b"\x80\x02]q\0h\0a.", "nest deeper")
    laughs = b"\x80\x02]q\0" + b"".join(
        b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 19 + b"eq" + bytes([i + 1]) for i in range(10)) + b"."
    evil("laughs", laughs, "more than")
    evil("key", b"\x80\x02}(K\x01u.", "without a value")
    evil("dims", dict_of(tensor_pickle(dims=b"K\x05\x85")), '"w" does not lie inside')
    evil("offset", dict_of(tensor_pickle(offset=b"K\x01")), '"w" does not lie inside')
    evil("overflow", dict_of(tensor_pickle(
        dims=b"\x8a\x08" + b"\0" * 7 + b"\x40\x8a\x08" + b"\0" * 7 + b"\x40\x86",
        strides=b"K\x01K\x01\x86")), '"w" does not lie inside')
    evil("negative", dict_of(tensor_pickle(dims=b"J\xff\xff\xff\xff\x85")), "a tensor of a wrong form")
    evil("storage_size", dict_of(tensor_pickle()), "claims a storage of 4 elements", storages=(b"\0" * 12,))
    evil("storage_missing", dict_of(tensor_pickle()), "the file lacks", storages=())
    evil("persistent", b"\x80\x02(K\x01tQ.", "persistent id")
    evil("compressed", dict_of(tensor_pickle()), "compressed", compression=zipfile.ZIP_DEFLATED)

    matrix = torch.arange(12.0).reshape(3, 4)
    torch.save({"turned": matrix.t()}, FOLDER / "evil_strided.pt")
    refuse("evil_strided.pt", '"turned" is not contiguous')
    torch.save({"w": matrix}, FOLDER / "evil_legacy.pt", _use_new_zipfile_serialization=False)
    legacy = (FOLDER / "evil_legacy.pt").read_bytes()  # what follows the first bytes differs each time
    (FOLDER / "evil_legacy.pt").write_bytes(legacy[:64])
    refuse("evil_legacy.pt", "before version 1.6")
    torch.save({"w": collections.Counter("abc")}, FOLDER / "evil_counter.pt")
    refuse("evil_counter.pt", "collections.Counter")

    write_zip("good.pt", dict_of(tensor_pickle()))
    expect_table("good.pt", {"w": torch.zeros(4)})
    good = (FOLDER / "good.pt").read_bytes()
    (FOLDER / "good.pt").write_bytes(good)

    def patched(file, message, change):
        data = bytearray(good)
        change(data)
        (FOLDER / f"evil_{file}.pt").write_bytes(bytes(data))
        refuse(f"evil_{file}.pt", message)

    central = good.index(b"PK\x01\x02")
    second = good.index(b"PK\x01\x02", central + 4)
    end = good.rindex(b"PK\x05\x06")
    patched("crc", "wrong CRC", lambda d: d.__setitem__(central + 16, d[central + 16] ^ 1))
    patched("encrypted", "encrypted", lambda d: d.__setitem__(second + 8, d[second + 8] | 1))
    patched("moved", "not where the directory says", lambda d: d.__setitem__(second + 42, 0))
    patched("count", "damaged zip", lambda d: d.__setitem__(slice(end + 8, end + 12), b"\xff\xff\xff\xff"))
    patched("directory", "damaged zip", lambda d: d.__setitem__(slice(end + 16, end + 20), b"\xf0\xff\xff\xff"))
    patched("end", "directory is missing", lambda d: d.__delitem__(slice(len(d) - 1, None)))
    patched("size", "claims a storage", lambda d: d.__setitem__(slice(second + 20, second + 28),
                                                               b"\xf0\xff\xff\x7f" * 2))
    patched("name", "not where the directory says", lambda d: d.__setitem__(
        second + 46, ord("b")) or d.__setitem__(central + 46, ord("b")))
    twice = io.BytesIO(good)
    with zipfile.ZipFile(twice, "a") as out:
        out.writestr(zipfile.ZipInfo("a/data/1"), b"x")
    doubled = bytearray(twice.getvalue())
    doubled[doubled.rindex(b"a/data/1") + 7] = ord("0")
    (FOLDER / "evil_twice.pt").write_bytes(bytes(doubled))
    refuse("evil_twice.pt", "comes twice")
    with zipfile.ZipFile(FOLDER / "evil_other.zip", "w") as out:
        out.writestr(zipfile.ZipInfo("readme.txt"), b"hello")
    refuse("evil_other.zip", "not one that torch.save wrote")


if __name__ == "__main__":
    torch.manual_seed(1)
    FOLDER.mkdir(exist_ok=True)
    make_models()
    make_tables()
    make_evil()
    make_seeds()
    for file in FOLDER.iterdir():
        file.chmod(0o644)
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    print(sum(f.stat().st_size for f in FOLDER.iterdir()), "bytes in", len(list(FOLDER.iterdir())), "files")
