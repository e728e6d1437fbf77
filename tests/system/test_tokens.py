"""ENCODE_TOKENS: a client that makes its own tokens gets what the same text would have given it."""

import numpy as np

from conftest import text_request
from luna import luna_pb2 as pb


def tokenize(client, text):
    header, payload = text_request(pb.TOKENIZE, text)
    client.send(header, b"", payload)
    answer, (_, *payloads) = client.receive()
    assert answer.code == pb.OK, answer.message
    return {t.name: (t, p) for t, p in zip(answer.tensors, payloads)}


def encode(client, header, body, payloads):
    client.send(header, body, *payloads)
    answer, (_, *tensors) = client.receive()
    assert answer.code == pb.OK, answer.message
    return {t.name: p for t, p in zip(answer.tensors, tensors)}


def test_tokens_and_their_text_give_the_same_bytes(shared):
    client = shared.raw()
    text, negative = "a (red:1.3) fox, " * 20, "blurry"
    header, payload = text_request(pb.ENCODE_TEXT, text)
    header.tensors.add(name="negative", dtype=pb.U8, dims=[len(negative)], bytes=len(negative))
    by_text = encode(client, header, pb.EncodeText(), [payload, negative.encode()])

    header, _ = text_request(pb.ENCODE_TOKENS, "")
    del header.tensors[:]
    payloads = []
    for prefix, words in (("", text), ("negative.", negative)):
        for name, (tensor, data) in tokenize(client, words).items():
            header.tensors.add(name=prefix + name, dtype=tensor.dtype, dims=tensor.dims, bytes=len(data))
            payloads.append(data)
    assert encode(client, header, pb.EncodeText(), payloads) == by_text


def test_an_id_beyond_the_vocabulary_is_named(shared):
    client = shared.raw()
    header, _ = text_request(pb.ENCODE_TOKENS, "")
    del header.tensors[:]
    payloads = []
    for name, (tensor, data) in tokenize(client, "a cat").items():
        if name == "l.ids":
            ids = np.frombuffer(data, np.int32).copy()
            ids[3] = 49408
            data = ids.tobytes()
        header.tensors.add(name=name, dtype=tensor.dtype, dims=tensor.dims, bytes=len(data))
        payloads.append(data)
    client.send(header, pb.EncodeText(), *payloads)
    answer, _ = client.receive()
    assert answer.code == pb.INVALID_ARGUMENT
    assert "49408" in answer.message
