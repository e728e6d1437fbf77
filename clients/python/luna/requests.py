"""Every operation as a Request: arguments checked and packed, and how its answer is unpacked.

The synchronous and the asyncio client share these; neither knows what is in a message.
"""

import functools

from . import arrays, errors
from . import luna_pb2 as pb
from .call import Request

_TILINGS = {"auto": pb.TILING_AUTO, "never": pb.TILING_NEVER, "always": pb.TILING_ALWAYS}
_LATENT_CHANNELS_MAX = 16
_TEXT_WIDTH_MAX = 2048  # SDXL's two encoders side by side
_TEXT_ROOM_BYTES_MAX = 64 << 20
_STATUS_MODEL_FIELDS = (
    "name",
    "kind",
    "bytes",
    "state",
    "users",
    "hash_vae",
    "hash_text",
    "message",
)


class TextResult:
    """What encode_text returns: arrays of the prompt and, if asked for, the negative prompt."""

    def __init__(self, body, tensors, convert, sizes):
        self.cond = _converted(tensors, "cond", convert)  # [1,T,D]
        self.pooled = _converted(tensors, "pooled", convert)  # [1,P]
        self.negative_cond = _converted(tensors, "negative_cond", convert)
        self.negative_pooled = _converted(tensors, "negative_pooled", convert)
        self.notes = list(body.notes)  # unknown embeddings and the like
        self.rows = body.rows  # of 77 tokens
        self.device = body.device
        self.loras = [plain(use) for use in body.loras]  # what each entry of the stack did
        self.loras_merged = body.loras_merged  # applied to a copy of the weights, not beside them
        self.cached = body.cached  # the answer was known
        self.queue_ms = body.queue_ms
        self.execute_ms = body.execute_ms
        self.sizes = sizes  # as given: they condition the UNet, not the text


def _converted(tensors, name, convert):
    return convert(tensors[name]) if name in tensors else None


def _need(tensors, name):
    if name not in tensors:
        raise errors.Internal(f'the answer has no tensor "{name}"')
    return tensors[name]


def _is_repeated(field):
    # protobuf 6 added the one and protobuf 7 took the other away.
    repeated = getattr(field, "is_repeated", None)
    return field.label == field.LABEL_REPEATED if repeated is None else repeated


def plain(message):
    """A message as a dictionary with every field, those at their defaults included."""
    out = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if _is_repeated(field):
            nested = field.type == field.TYPE_MESSAGE
            out[field.name] = [plain_model(v) if nested else v for v in value]
        elif field.type == field.TYPE_MESSAGE:
            out[field.name] = plain_model(value)
        elif field.type == field.TYPE_ENUM:
            named = field.enum_type.values_by_number.get(value)
            out[field.name] = named.name if named is not None else value
        elif field.type == field.TYPE_BYTES:
            out[field.name] = value.hex()
        else:
            out[field.name] = value
    return out


def plain_model(message):
    """As plain; a Model has the form that `luna models list --json` gives it."""
    if not isinstance(message, pb.Model):
        return plain(message)
    out = {name: getattr(message, name) for name in _STATUS_MODEL_FIELDS}
    out["offers"] = [name for name in ("vae", "text") if getattr(message, f"offers_{name}")]
    out["loaded_on"] = list(message.loaded_on)
    return out


def _image_body(kind, tiling, tile, overlap, passes, dtype):
    if tiling not in _TILINGS:
        raise ValueError(f'tiling "{tiling}" is none of {", ".join(_TILINGS)}')
    return kind(
        tiling=_TILINGS[tiling],
        tile=tile,
        overlap=overlap,
        passes=passes,
        output=arrays.dtype_number(dtype),
    )


def _image_finish(name, original, details):
    def finish(body, tensors):
        array = arrays.like(_need(tensors, name), original)
        return (array, plain(body)) if details else array

    return finish


def encode_image(image, model, tiling, tile, overlap, passes, dtype, details):
    tensor = arrays.from_array("image", image, floats_only=True)
    body = _image_body(pb.EncodeImage, tiling, tile, overlap, passes, dtype)
    width = arrays.element_bytes(body.output or pb.F32)
    rooms = []
    if len(tensor.dims) == 4:
        count, height, across, _ = tensor.dims
        rooms = [("latent", count * _LATENT_CHANNELS_MAX * (height // 8) * (across // 8) * width)]
    return Request(
        pb.ENCODE_IMAGE,
        body,
        [tensor],
        rooms,
        model,
        pb.ImageReply,
        _image_finish("latent", image, details),
        tiling == "auto",
    )


def decode_latent(latent, model, tiling, tile, overlap, passes, dtype, details):
    tensor = arrays.from_array("latent", latent, floats_only=True)
    body = _image_body(pb.DecodeLatent, tiling, tile, overlap, passes, dtype)
    width = arrays.element_bytes(body.output or pb.F32)
    rooms = []
    if len(tensor.dims) in (3, 4):
        count = tensor.dims[0] if len(tensor.dims) == 4 else 1
        rooms = [("image", count * tensor.dims[-2] * 8 * tensor.dims[-1] * 8 * 3 * width)]
    return Request(
        pb.DECODE_LATENT,
        body,
        [tensor],
        rooms,
        model,
        pb.ImageReply,
        _image_finish("image", latent, details),
        tiling == "auto",
    )


def _convert(torch):
    if not torch:
        return arrays.to_numpy
    device = None if torch is True else torch
    return functools.partial(arrays.to_torch, device=device)


def _text_body(clip_skip, loras, lora_multiplier, dtype, weights):
    return pb.EncodeText(
        clip_skip=clip_skip or 0,
        disable_weights=not weights,
        output=arrays.dtype_number(dtype),
        loras=loras,
        lora_multiplier=lora_multiplier,
    )


def _text_rooms(tensors, width):
    """Room for conditioning: n bytes make at most n tokens, and a full chunk holds at least 68."""
    rooms = []
    for room, prefix in (("cond", "prompt"), ("negative_cond", "negative")):
        sizes = [tensor.bytes for tensor in tensors if tensor.name.startswith(prefix)]
        if sizes:
            chunks = 1 + max(sizes) // 68
            rooms.append((room, min(chunks * 77 * _TEXT_WIDTH_MAX * width, _TEXT_ROOM_BYTES_MAX)))
    return rooms


def encode_text(
    texts, model, lora_multiplier, clip_skip, sizes, dtype, weights, torch, loras=(), files=()
):
    """files: tensors of adapters that travel along."""
    tensors = [arrays.from_text(name, text) for name, text in texts.items() if text is not None]
    body = _text_body(clip_skip, loras, lora_multiplier, dtype, weights)
    return Request(
        pb.ENCODE_TEXT,
        body,
        [*tensors, *files],
        _text_rooms(tensors, arrays.element_bytes(body.output or pb.F32)),
        model,
        pb.TextReply,
        lambda reply, found: TextResult(reply, found, _convert(torch), sizes),
    )


def _token_tensors(prefix, chunks):
    """Tensors of {"l": [[[id, weight], ... 77], ...], ...}, as tokenize returns it."""
    for encoder, rows in (chunks or {}).items():
        ids = [[token for token, _ in row] for row in rows]
        weights = [[weight for _, weight in row] for row in rows]
        yield arrays.from_array(f"{prefix}{encoder}.ids", arrays.numpy.array(ids, "<i4"))
        yield arrays.from_array(f"{prefix}{encoder}.weights", arrays.numpy.array(weights, "<f8"))


def encode_tokens(
    chunks, negative, model, lora_multiplier, clip_skip, dtype, torch, loras=(), files=()
):
    """files: tensors of adapters that travel along."""
    tensors = [*_token_tensors("", chunks), *_token_tensors("negative.", negative), *files]
    body = _text_body(clip_skip, loras, lora_multiplier, dtype, True)
    return Request(
        pb.ENCODE_TOKENS,
        body,
        tensors,
        (),
        model,
        pb.TextReply,
        lambda reply, found: TextResult(reply, found, _convert(torch), None),
    )


def _chunks(reply, tensors):
    out = {}
    for name in tensors:
        encoder, _, what = name.rpartition(".")
        if what == "ids":
            ids = arrays.to_numpy(tensors[name]).tolist()
            weights = arrays.to_numpy(_need(tensors, f"{encoder}.weights")).tolist()
            out[encoder] = [[list(pair) for pair in zip(*row)] for row in zip(ids, weights)]
    return out


def tokenize(text, text_2, model, weights):
    texts = {"prompt": text, "prompt_2": text_2}
    tensors = [arrays.from_text(name, text) for name, text in texts.items() if text is not None]
    return Request(
        pb.TOKENIZE,
        pb.Tokenize(disable_weights=not weights),
        tensors,
        (),
        model,
        pb.TextReply,
        _chunks,
    )


def register_model(name, files, embeddings):
    files = [files] if isinstance(files, str) else [str(file) for file in files]
    body = pb.ModelRegister(name=name, files=files, embeddings=embeddings or "")
    return Request(pb.MODEL_REGISTER, body, reply=pb.ModelReply, finish=_model)


def model_by_name(operation, name):
    return Request(operation, pb.ModelName(name=name), reply=pb.ModelReply, finish=_model)


def _model(reply, tensors):
    return plain_model(reply.model)


def lora_by_name(operation, reference):
    return Request(
        operation,
        pb.LoraName(reference=reference),
        reply=pb.LoraReply,
        finish=lambda reply, tensors: plain(reply.lora),
    )


def lora_stats():
    def finish(reply, tensors):
        out = plain(reply)
        return {**out.pop("totals"), **out}

    return Request(pb.LORA_STATS, reply=pb.LoraStats, finish=finish)


def scan_loras():
    return Request(
        pb.LORA_SCAN, reply=pb.LoraScanReply, finish=lambda reply, tensors: plain(reply)
    )


def status():
    return Request(pb.STATUS, reply=pb.Status, finish=lambda reply, tensors: plain(reply))


def ping():
    return Request(pb.PING, reply=pb.PingReply, finish=lambda reply, tensors: plain(reply))


def cancel(request_id):
    return Request(pb.CANCEL, pb.Cancel(id=request_id), finish=lambda reply, tensors: None)


def simple(operation):
    """DRAIN and SHUTDOWN."""
    return Request(operation, finish=lambda reply, tensors: None)


def limits(values):
    def finish(reply, tensors):
        return {field.name: value for field, value in reply.ListFields()}

    return Request(pb.LIMITS, pb.Limits(**values), reply=pb.Limits, finish=finish)


def attach():
    return Request(pb.ATTACH, reply=pb.AttachReply)
