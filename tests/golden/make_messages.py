#!/usr/bin/env python3
"""Writes tests/golden/messages/*.bin: messages as another implementation of protobuf writes them,
and from them what tests/fuzz/fuzz_codec.c starts with.

The C tests read each of them with the codec and write the same bytes again. Run it with a Python
that has protobuf 4 (./dev has one) after protoc made luna_pb2.py and actors_pb2.py:

    protoc -Imessages --python_out=DIRECTORY messages/luna.proto messages/actors.proto
    PYTHONPATH=DIRECTORY python tests/golden/make_messages.py

A file's name is MESSAGE.VARIANT.bin; the C test knows the type by MESSAGE.
"""

import pathlib
import struct

import actors_pb2 as actors
import luna_pb2 as luna

FOLDER = pathlib.Path(__file__).parent / "messages"
CORPUS = pathlib.Path(__file__).parent.parent / "fuzz" / "corpus" / "codec"
ID = bytes(range(16))


def header_request():
    header = luna.Header(
        major=1,
        kind=luna.REQUEST,
        id=ID,
        operation=luna.DECODE_LATENT,
        model="sdxl",
        timeout_ms=0,
        priority=-100,
        want_progress=True,
        may_tile=True,
    )
    header.tensors.add(name="latent", dtype=luna.BF16, dims=[1, 4, 128, 1 << 33], bytes=(1 << 43))
    room = header.tensors.add(name="image", bytes=1 << 20, where=luna.SHARED, room=True)
    room.shared.pool, room.shared.slot, room.shared.generation, room.shared.offset = (
        1,
        2,
        300,
        1 << 40,
    )
    return header


def header_reply():
    return luna.Header(
        major=1,
        minor=4_000_000_000,
        kind=luna.REPLY,
        id=ID,
        operation=luna.ENCODE_TEXT,
        code=luna.RESOURCE_EXHAUSTED,
        message="größer als 文字 🦊",
        retry_after_ms=1500,
    )


def header_progress():
    return luna.Header(
        major=1,
        kind=luna.PROGRESS,
        id=b"\xff" * 16,
        operation=luna.ENCODE_IMAGE,
        progress_done=3,
        progress_total=27,
    )


def encode_text():
    body = luna.EncodeText(clip_skip=-2, disable_weights=True, output=luna.F16, lora_multiplier=0.0)
    body.loras.add(reference="style", strength=0.8)
    body.loras.add(
        reference="f" * 64,
        strength=-1.5,
        strength_l=0.0,
        strength_g=0.25,
        scaling=2.0,
        disabled=True,
    )
    return body


def status():
    body = luna.Status(
        version="0.1.0", pid=4711, uptime_seconds=1.25, service_type="full", state="ready"
    )
    body.requests.total = 1 << 63
    body.devices.add(name="cpu", label="a processor", memory_total_bytes=1 << 40)
    body.services.add(
        operation="vae", model="sdxl", workers_max=2, queue_age_seconds=0.1, state="idle"
    )
    body.models.add(name="sdxl", offers_vae=True, kind="sdxl", loaded_on=["cpu", "cuda:0"])
    body.loras.hit_ratio = 1 / 3
    body.transport.shared_bytes = 1
    return body


def event():
    return luna.Event(
        sequence=9,
        time_unix_ms=1_700_000_000_000,
        topic="scaling.up",
        actor="scaler",
        message="queue age 1200 ms is above 1000 ms",
        operation="vae",
        model="sdxl",
        id=ID,
        signal="queue_age_ms",
        value=1200.0,
        threshold=1000.0,
        workers=2,
    )


def lora():
    return luna.Lora(
        name="style",
        hash="ab" * 32,
        encoder_hash="cd" * 32,
        bytes=1 << 33,
        memory_bytes=1 << 20,
        format="safetensors",
        path="folder/style.safetensors",
        rank=32,
        encoders=["l", "g"],
        modules=264,
        family="lora",
        uses=3,
        hits=2,
        load_ms=1.5,
        age_seconds=0.25,
        pins=1,
        pinned=True,
        resident=True,
    )


def resolved():
    letter = actors.Letter()
    letter.stack_resolved.job = 7
    letter.stack_resolved.entries.add(
        encoder_hash=b"\xcd" * 32, strength_l=0.8, strength_g=-1.0, bytes=1 << 20, keys_other=722
    )
    letter.stack_resolved.entries.add(one_shot=True)
    return letter


def letter():
    letter = actors.Letter()
    letter.worker_down.worker = (7 << 16) | 3
    letter.worker_down.service.group = actors.TEXT
    letter.worker_down.service.model = "sdxl"
    letter.worker_down.device = "cuda:0"
    letter.worker_down.reason = "killed by signal 9"
    return letter


def empty_letter():
    letter = actors.Letter()
    letter.stop_all.SetInParent()
    return letter


def repeat_dims_one_by_one(packed):
    """Dimensions without packing, as an old encoder may: field 3 of Tensor, varint by varint."""
    old = b"".join(b"\x18" + bytes([d]) for d in (1, 4, 8, 8))
    new = b"\x1a\x04\x01\x04\x08\x08"
    tensor = packed.tensors[0].SerializeToString(deterministic=True)
    assert new in tensor
    whole = packed.SerializeToString(deterministic=True)
    return whole.replace(
        b"\x62" + bytes([len(tensor)]) + tensor,
        b"\x62" + bytes([len(tensor) - len(new) + len(old)]) + tensor.replace(new, old),
    )


def requests():
    """Whole requests: header and body, with the tensors that the operation takes."""

    def header(operation, **tensors):
        made = luna.Header(major=1, kind=luna.REQUEST, id=ID, operation=operation)
        for name, (dtype, width, dims) in tensors.items():
            count = width
            for dim in dims:
                count *= dim
            made.tensors.add(name=name.replace("__", "."), dtype=dtype, dims=dims, bytes=count)
        return made

    ids, weights = (luna.I32, 4, [2, 77]), (luna.F64, 8, [2, 77])
    return {
        "encode_image": (
            header(luna.ENCODE_IMAGE, image=(luna.U8, 1, [1, 8, 8, 3])),
            luna.EncodeImage(tiling=luna.TILING_ALWAYS, tile=256, overlap=32, passes=1),
        ),
        "decode_latent": (
            header(luna.DECODE_LATENT, latent=(luna.F16, 2, [4, 8, 8])),
            luna.DecodeLatent(output=luna.U8),
        ),
        "encode_text": (
            header(luna.ENCODE_TEXT, prompt=(luna.U8, 1, [9]), negative=(luna.U8, 1, [0])),
            encode_text(),
        ),
        "encode_tokens": (
            header(luna.ENCODE_TOKENS, l__ids=ids, l__weights=weights),
            luna.EncodeText(),
        ),
        "tokenize": (
            header(luna.TOKENIZE, prompt=(luna.U8, 1, [9])),
            luna.Tokenize(disable_weights=True),
        ),
        "register": (
            header(luna.MODEL_REGISTER),
            luna.ModelRegister(name="sdxl", files=["a.safetensors", "b.safetensors"]),
        ),
        "encode_stack": (
            header(luna.ENCODE_TEXT, prompt=(luna.U8, 1, [9]), lora__0=(luna.U8, 1, [99])),
            luna.EncodeText(loras=[luna.LoraEntry(tensor="lora.0", strength=0.5)], lora_scaling=2.0),
        ),
        "lora_put": (
            header(luna.LORA_PUT, file=(luna.U8, 1, [99])),
            luna.LoraPut(name="style", hash="ab" * 32),
        ),
        "lora_begin": (
            header(luna.LORA_PUT),
            luna.LoraPut(step=luna.PUT_BEGIN, hash="ab" * 32, bytes=1 << 40),
        ),
        "lora_chunk": (
            header(luna.LORA_PUT, file=(luna.U8, 1, [99])),
            luna.LoraPut(step=luna.PUT_CHUNK, upload=(1 << 64) - 1, offset=1 << 33),
        ),
        "lora_has": (header(luna.LORA_HAS), luna.LoraName(reference="folder/größe.safetensors")),
        "lora_get": (header(luna.LORA_GET), luna.LoraGet(reference="style", offset=7, bytes=9)),
        "lora_list": (header(luna.LORA_LIST), luna.Page(offset=16)),
        "load": (header(luna.MODEL_LOAD), luna.ModelName(name="sdxl")),
        "list": (header(luna.MODEL_LIST), luna.Page(offset=32)),
        "cancel": (header(luna.CANCEL), luna.Cancel(id=ID)),
        "limits": (header(luna.LIMITS), luna.Limits(vae_workers_min=1, vae_workers_max=2)),
        "ping": (header(luna.PING), luna.Empty()),
    }


def write_corpus(vectors):
    # A byte above 2 chooses the answer by its rest modulo those that fuzz_codec.c knows.
    kinds = {
        "header": 0,
        "letter": 2,
        "status": 3,
        "lease_reply": 5,
        "event": 7,
        "lora_reply": 8,
        "lora_list": 9,
        "adapter_reply": 12,
    }
    for name, message in vectors.items():
        kind = kinds.get(name.partition(".")[0])
        if kind is not None:
            content = bytes([kind]) + message.SerializeToString(deterministic=True)
            (CORPUS / name).write_bytes(content)
    for name, (header, body) in requests().items():
        head = header.SerializeToString(deterministic=True)
        content = (
            b"\x01"
            + struct.pack("<H", len(head))
            + head
            + body.SerializeToString(deterministic=True)
        )
        (CORPUS / f"request.{name}").write_bytes(content)


def main():
    FOLDER.mkdir(exist_ok=True)
    CORPUS.mkdir(parents=True, exist_ok=True)
    vectors = {
        "header.request": header_request(),
        "header.reply": header_reply(),
        "header.progress": header_progress(),
        "encode_text.full": encode_text(),
        "status.full": status(),
        "event.full": event(),
        "letter.worker_down": letter(),
        "letter.stop_all": empty_letter(),
        "letter.stack_resolved": resolved(),
        "lora_reply.full": luna.LoraReply(lora=lora(), upload=1 << 63, known=True, received_bytes=9),
        "lora_list.full": luna.LoraListReply(loras=[lora(), luna.Lora(name="other")], total=18),
        "adapter_reply.full": luna.AdapterReply(code=luna.NOT_FOUND, message="no", lora=lora()),
        "empty.empty": luna.Empty(),
        "encode_image.zeros": luna.EncodeImage(tile=0, overlap=0, passes=0),
        "lease_reply.full": luna.LeaseReply(
            pool=1, pool_bytes=1 << 32, slot=5, generation=6, offset=1 << 31, bytes=1 << 20
        ),
    }
    for name, message in vectors.items():
        (FOLDER / f"{name}.bin").write_bytes(message.SerializeToString(deterministic=True))
    write_corpus(vectors)
    unpacked = luna.Header(major=1, kind=luna.REQUEST, id=ID, operation=luna.DECODE_LATENT)
    unpacked.tensors.add(name="latent", dtype=luna.F32, dims=[1, 4, 8, 8], bytes=1024)
    (FOLDER / "header.packed.bin").write_bytes(unpacked.SerializeToString(deterministic=True))
    (FOLDER / "header.unpacked.bin").write_bytes(repeat_dims_one_by_one(unpacked))


if __name__ == "__main__":
    main()
