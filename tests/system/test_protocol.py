"""Raw pyzmq against the daemon: what the contract allows, and everything that it does not."""

import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import zmq

from conftest import PATIENCE, latent_request, request, text_request, wait_until
from files import random_latent
from luna import luna_pb2 as pb


@pytest.fixture
def client(shared):
    """A DEALER; afterwards the daemon still serves."""
    raw = shared.raw()
    yield raw
    raw.close()
    assert shared.is_serving()


def refused(client, code, *frames, names=()):
    """Sends the frames and expects the error, whose message has every one of the words."""
    client.send(*frames)
    answer, rest = client.receive()
    assert (answer.kind, pb.Code.Name(answer.code)) == (pb.REPLY, pb.Code.Name(code)), answer
    assert rest == [b""]
    for word in names:
        assert str(word) in answer.message, answer.message
    return answer


# ---- the contract


def test_a_req_socket_gets_exactly_one_answer(shared):
    client = shared.raw(zmq.REQ)  # its socket puts the empty delimiter in front and takes it away
    header, payload = latent_request(random_latent(1, 24, 24), want_progress=True)
    client.send(header, pb.DecodeLatent(tiling=pb.TILING_ALWAYS, tile=128, overlap=32), payload)
    answer, rest = client.receive()
    assert (answer.kind, answer.code, answer.id) == (pb.REPLY, pb.OK, header.id)
    assert pb.ImageReply.FromString(rest[0]).tiled
    header, data = text_request(pb.TOKENIZE, "a cat")
    client.send(header, b"", data)
    assert client.receive()[0].id == header.id


def test_a_dealer_may_have_any_number_of_requests(client):
    wanted = {}
    for i in range(64):
        header, data = text_request(pb.TOKENIZE, f"cat {i}")
        wanted[header.id] = i
        client.send(header, b"", data)
    got = [client.receive()[0] for _ in wanted]
    assert all(answer.code == pb.OK for answer in got)
    assert sorted(wanted[answer.id] for answer in got) == list(range(64))
    assert client.is_silent()


def test_an_answer_says_what_its_payloads_are(client):
    latent = random_latent(1)
    header, payload = latent_request(latent)
    answer, rest = client.ask(header, b"", payload)
    tensor = answer.tensors[0]
    assert (answer.operation, answer.major) == (pb.DECODE_LATENT, 1)
    assert (tensor.name, tensor.dtype, list(tensor.dims)) == ("image", pb.F32, [1, 64, 64, 3])
    assert tensor.bytes == len(rest[1]) == 64 * 64 * 3 * 4 and len(rest) == 2
    pixels = np.frombuffer(rest[1], "<f4")
    assert pixels.min() >= 0 and pixels.max() <= 1 and pixels.std() > 0.05


def test_progress_counts_tiles_up_to_the_answer(client):
    header, payload = latent_request(random_latent(1, 24, 24), want_progress=True)
    client.send(header, pb.DecodeLatent(tiling=pb.TILING_ALWAYS, tile=128, overlap=32), payload)
    steps = []
    while True:
        answer, rest = client.receive()
        assert answer.id == header.id
        if answer.kind == pb.REPLY:
            break
        steps.append((answer.progress_done, answer.progress_total))
    assert answer.code == pb.OK
    tiles = pb.ImageReply.FromString(rest[0]).tiles
    assert steps and {total for _, total in steps} == {tiles}
    done = [count for count, _ in steps]
    assert done == sorted(done) and 0 <= done[0] and done[-1] <= tiles
    assert client.is_silent()


def test_no_progress_unless_wanted(client):
    header, payload = latent_request(random_latent(1, 24, 24))
    client.send(header, pb.DecodeLatent(tiling=pb.TILING_ALWAYS, tile=128, overlap=32), payload)
    assert client.receive()[0].kind == pb.REPLY


def test_unknown_fields_of_a_newer_minor_are_ignored(client):
    header, data = text_request(pb.TOKENIZE, "a cat", minor=7)
    client.send(header.SerializeToString() + b"\xfa\x3f\x03new", b"\xfa\x3f\x03new", data)
    assert client.receive()[0].code == pb.OK


def test_ping_tells_the_limits(client):
    answer, rest = client.ask(request(pb.PING))
    ping = pb.PingReply.FromString(rest[0])
    assert (ping.major, ping.minor_max, ping.text_bytes_max, ping.state) == (1, 0, 65536, "ready")
    assert ping.message_bytes_max == 1 << 30 and ping.image_pixels_max == 1 << 26


# ---- headers that are wrong


def test_another_major_is_told_the_range(client):
    for major in (0, 2, 4294967295):
        refused(client, pb.FAILED_PRECONDITION, request(pb.PING, major=major), b"", names=[major, "1.0"])


def test_an_operation_of_a_newer_minor_is_unimplemented(client):
    header = request(pb.PING).SerializeToString() + b"\x28\xe7\x07"  # operation = 999
    refused(client, pb.UNIMPLEMENTED, header, b"", names=[999])


@pytest.mark.parametrize("fields, words", [
    ({"kind": pb.REPLY}, ["kind"]), ({"kind": pb.KIND_NONE}, ["kind"]), ({"priority": 101}, ["priority", 101]),
    ({"priority": -101}, ["priority", -101]), ({"hop": 2}, ["hop", 2]), ({"model": "a/b"}, ["a/b"]),
    ({"model": "m" * 64}, []), ({"id": b"short"}, []), ({"id": b""}, []),
])
def test_fields_out_of_bounds_are_named(client, fields, words):
    header, data = text_request(pb.TOKENIZE, "a cat", **fields)
    refused(client, pb.INVALID_ARGUMENT, header, b"", data, names=words)


@pytest.mark.parametrize("junk", [
    b"\xff" * 40, b"GET / HTTP/1.1", b"\x0a", bytes(1000), b"\x08\x01" * 500, b"\x62\xff\xff\xff\xff\x0f",
    b"\x0b" * 10_000, os.urandom(64), b"\x08" + b"\xff" * 12,
])
def test_garbage_for_a_header_is_answered_invalid(client, junk):
    refused(client, pb.INVALID_ARGUMENT if not junk.startswith(b"\x08\x01") else pb.INVALID_ARGUMENT, junk, b"")


def test_a_header_cut_at_every_byte_never_passes(client):
    header, data = text_request(pb.TOKENIZE, "a cat", model="demo")
    whole = header.SerializeToString()
    for end in range(1, len(whole)):
        client.send(whole[:end], b"", data)
        assert client.receive()[0].code != pb.OK, end


def test_garbage_for_a_body_is_answered_invalid(client):
    for junk in (b"\xff" * 40, b"\x0a\x05ab", os.urandom(64)[:-1] + b"\xff"):
        header, payload = latent_request(random_latent(1))
        refused(client, pb.INVALID_ARGUMENT, header, junk, payload)
    header, payload = latent_request(random_latent(1))
    refused(client, pb.INVALID_ARGUMENT, header, b"\x08\x63", payload, names=[99])  # tiling = 99


# ---- frames that are wrong


def test_messages_without_a_header_are_dropped(shared, client):
    client.send(b"")
    assert client.is_silent()
    for frames in ([b"", b""], [b"", b"", b""]):  # behind the delimiter that REQ sends
        client.send(*frames)
        assert client.socket.poll(5000 * PATIENCE)
        delimiter, head, body = client.socket.recv_multipart()
        assert (delimiter, body) == (b"", b"")
        assert pb.Header.FromString(head).code == pb.FAILED_PRECONDITION  # an empty header is protocol 0.0


def test_a_missing_body_is_named(client):
    client.send(request(pb.PING))
    answer, _ = client.receive()
    assert answer.code == pb.INVALID_ARGUMENT and "body" in answer.message


def test_missing_extra_and_empty_payloads_are_refused(client):
    latent = random_latent(1)
    header, payload = latent_request(latent)
    for frames in ([], [payload, payload], [b""], [payload[:-1]], [payload + b"x"], [payload] * 8):
        header.id = os.urandom(16)
        refused(client, pb.INVALID_ARGUMENT, header, b"", *frames)
    header.id = os.urandom(16)
    refused(client, pb.INVALID_ARGUMENT, header, b"", *[payload] * 9)
    header.id = os.urandom(16)
    refused(client, pb.INVALID_ARGUMENT, header, b"", *[b"x"] * 5000)


def test_payloads_that_nobody_announced_are_refused(client):
    refused(client, pb.INVALID_ARGUMENT, request(pb.PING), b"", b"extra")


@pytest.mark.parametrize("dims, count, words", [
    ([0, 16, 8, 8], 0, ["0"]), ([1, 16, 0, 8], 0, ["0"]), ([2**63, 2, 8, 8], 4096, []),
    ([2**32, 2**32, 1, 1], 0, ["2^64"]), ([2**64 - 1, 1, 1, 1], 2**64 - 4, []), ([1] * 9, 4, []), ([], 4, []),
    ([1, 16, 8, 8], 4, ["4", "4096"]), ([16], 64, ["latent"]), ([1, 16, 8, 8, 1], 4096, ["latent"]),
    ([1, 5, 8, 8], 1280, ["5", "16"]), ([1, 16, 1, 2**20], 2**26, []),
])
def test_dimensions_that_cannot_be_are_refused_before_anything_is_allocated(client, dims, count, words):
    header = request(pb.DECODE_LATENT, [("latent", pb.F32, dims, count)])
    payload = bytes(count) if count <= 2**26 else b""
    refused(client, pb.INVALID_ARGUMENT, header, b"", payload, names=words)


def test_types_and_names_that_an_operation_does_not_take_are_named(client):
    payload = bytes(4096)
    for name, dtype, words in (("image", pb.F32, ["image"]), ("latent", pb.I32, ["I32"]), ("", pb.F32, []),
                               ("latent", pb.DTYPE_NONE, ["0"]), ("x" * 32, pb.F32, [])):
        header = request(pb.DECODE_LATENT, [(name, dtype, [1, 16, 8, 8], 4096)])
        refused(client, pb.INVALID_ARGUMENT, header, b"", payload)
    header = request(pb.DECODE_LATENT, [("latent", pb.F32, [1, 16, 8, 8], 4096)] * 2)
    refused(client, pb.INVALID_ARGUMENT, header, b"", payload, payload, names=["latent"])
    for channels in (1, 2, 5):
        header = request(pb.ENCODE_IMAGE, [("image", pb.U8, [1, 8, 8, channels], 64 * channels)])
        refused(client, pb.INVALID_ARGUMENT, header, b"", bytes(64 * channels))


def test_an_image_of_too_many_pixels_names_both_numbers(make_daemon):
    daemon = make_daemon(settings={"limits.image_pixels_max": 4096})
    header = request(pb.ENCODE_IMAGE, [("image", pb.U8, [1, 64, 72, 3], 64 * 72 * 3)])
    refused(daemon.raw(), pb.INVALID_ARGUMENT, header, b"", bytes(64 * 72 * 3), names=[4096, 4608])
    header, payload = latent_request(random_latent(1, 9, 8))
    refused(daemon.raw(), pb.INVALID_ARGUMENT, header, b"", payload, names=[4096, 4608])


def test_shared_memory_that_nobody_leased_is_refused(client):
    header, _ = latent_request(random_latent(1))
    header.tensors[0].where = pb.SHARED
    header.tensors[0].shared.CopyFrom(pb.SharedRef(pool=0, slot=3, generation=9))
    answer, _ = client.ask(header)
    assert answer.code in (pb.INVALID_ARGUMENT, pb.NOT_FOUND, pb.FAILED_PRECONDITION), answer
    header.id = os.urandom(16)
    header.tensors[0].shared.offset = 2**64 - 8
    refused(client, pb.INVALID_ARGUMENT, header, b"")


# ---- values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_latent_that_is_not_finite_is_answered_and_flagged(client, value):
    latent = random_latent(1)
    latent[0, 3, 2, 1] = value
    header, payload = latent_request(latent)
    answer, rest = client.ask(header, b"", payload)
    assert answer.code == pb.OK, answer
    assert pb.ImageReply.FromString(rest[0]).not_finite_input
    header, payload = latent_request(random_latent(1))
    answer, rest = client.ask(header, b"", payload)
    assert not pb.ImageReply.FromString(rest[0]).not_finite_input


def test_an_unknown_model_is_named(client):
    header, data = text_request(pb.TOKENIZE, "a cat", model="nothing")
    refused(client, pb.NOT_FOUND, header, b"", data, names=["nothing"])


# ---- time


def test_a_timeout_of_zero_is_over_at_once(client):
    for header, body, payload in ((request(pb.PING, timeout_ms=0), b"", []),
                                  (lambda pair: (pair[0], b"", [pair[1]]))(
                                      latent_request(random_latent(1), timeout_ms=0))):
        begun = time.monotonic()
        refused(client, pb.DEADLINE_EXCEEDED, header, body, *payload, names=["0 ms"])
        assert time.monotonic() - begun < 1 * PATIENCE


def test_a_deadline_while_running_and_while_waiting(client):
    running, payload = latent_request(random_latent(1, 128, 128), timeout_ms=400)
    client.send(running, b"", payload)
    waiting = []
    for i in range(3):
        header, payload = latent_request(random_latent(2 + i, 64, 64), timeout_ms=300)
        waiting.append(header.id)
        client.send(header, b"", payload)
    begun = time.monotonic()
    answers = dict((answer.id, answer) for answer, _ in (client.receive() for _ in range(4)))
    assert {pb.Code.Name(answer.code) for answer in answers.values()} == {"DEADLINE_EXCEEDED"}
    assert "400 ms" in answers[running.id].message and "300 ms" in answers[waiting[2]].message
    assert time.monotonic() - begun < 2 * PATIENCE
    assert client.is_silent()


# ---- ids


def test_the_same_request_again_is_answered_from_memory(shared, client):
    header, payload = latent_request(random_latent(1))
    first = client.ask(header, b"", payload)
    executed = shared.service("vae").requests_total
    again = client.ask(header, b"", payload)
    assert again[1] == first[1] and again[0].code == pb.OK
    assert shared.service("vae").requests_total == executed


def test_the_same_request_while_it_runs_is_answered_once(client):
    header, payload = latent_request(random_latent(1, 48, 48))
    for _ in range(3):
        client.send(header, b"", payload)
    assert client.receive()[0].code == pb.OK
    assert client.is_silent(500)


def test_an_id_used_again_for_another_request_is_refused(client):
    header, payload = latent_request(random_latent(1))
    assert client.ask(header, b"", payload)[0].code == pb.OK
    other = random_latent(2).tobytes()
    refused(client, pb.INVALID_ARGUMENT, header, b"", other, names=["id"])
    running, payload = latent_request(random_latent(1, 64, 64))
    client.send(running, b"", payload)
    refused(client, pb.INVALID_ARGUMENT, running, pb.DecodeLatent(output=pb.U8), payload, names=["id"])
    assert client.receive()[0].code == pb.OK


def test_a_repeat_from_another_connection_gets_the_answer(shared, client):
    header, payload = latent_request(random_latent(5, 48, 48))
    client.send(header, b"", payload)
    wait_until(lambda: shared.status().requests.running >= 1, 20, "the decode runs")
    other = shared.raw()
    assert other.ask(header, b"", payload)[0].code == pb.OK


# ---- cancel


def test_cancel_of_a_running_and_of_a_waiting_request(shared, client):
    running, payload = latent_request(random_latent(1, 128, 128))
    client.send(running, b"", payload)
    wait_until(lambda: shared.status().requests.running >= 1, 20, "the decode runs")
    waiting = [latent_request(random_latent(i, 128, 128)) for i in (2, 3, 4)]
    for header, payload in waiting:
        client.send(header, b"", payload)
    ids = [header.id for header, _ in waiting[::-1]] + [running.id]
    cancels = [request(pb.CANCEL) for _ in ids]
    for header, target in zip(cancels, ids):
        client.send(header, pb.Cancel(id=target))
    codes = {}
    for _ in range(2 * len(ids)):
        answer, _ = client.receive()
        codes[answer.id] = pb.Code.Name(answer.code)
    assert {codes[target] for target in ids} == {"CANCELLED"}
    assert {codes[header.id] for header in cancels} == {"OK"}
    header, payload = latent_request(random_latent(9))
    answer, rest = client.ask(header, b"", payload)
    assert answer.code == pb.OK and pb.ImageReply.FromString(rest[0]).queue_ms <= 1000 * PATIENCE, rest


def test_cancel_of_what_is_not_there_is_not_found(client):
    target = os.urandom(16)
    refused(client, pb.NOT_FOUND, request(pb.CANCEL), pb.Cancel(id=target), names=[target.hex()])
    refused(client, pb.INVALID_ARGUMENT, request(pb.CANCEL), pb.Cancel(id=b"short"))
    done, data = text_request(pb.TOKENIZE, "a cat")
    assert client.ask(done, b"", data)[0].code == pb.OK
    refused(client, pb.NOT_FOUND, request(pb.CANCEL), pb.Cancel(id=done.id))


def test_nobody_cancels_the_request_of_another_user(shared, client):
    running, payload = latent_request(random_latent(1, 48, 48))
    client.send(running, b"", payload)
    wait_until(lambda: shared.status().requests.running >= 1, 20, "the decode runs")
    other = shared.raw(endpoint=shared.tcp)  # another user: not the one of the socket
    refused(other, pb.NOT_FOUND, request(pb.CANCEL), pb.Cancel(id=running.id), names=[running.id.hex()])
    assert client.receive(30)[0].code == pb.OK


@pytest.mark.release
def test_cancel_of_a_2048_decode_frees_the_lane_within_half_a_second(daemon):
    client = daemon.raw()
    warm, payload = latent_request(random_latent(1))
    client.ask(warm, b"", payload)
    large, payload = latent_request(random_latent(1, 256, 256))
    client.send(large, pb.DecodeLatent(tiling=pb.TILING_NEVER), payload)
    assert client.is_silent(1000)  # the one second of work
    client.send(request(pb.CANCEL), pb.Cancel(id=large.id))
    header, payload = latent_request(random_latent(2))
    answer, rest = client.ask(header, b"", payload)
    assert answer.code == pb.OK, answer
    assert pb.ImageReply.FromString(rest[0]).queue_ms <= 500, rest[0]


# ---- text


def test_30000_nested_parentheses_take_no_time(client):
    nested = "(" * 30_000 + "cat" + ")" * 30_000
    header, data = text_request(pb.TOKENIZE, nested)
    client.ask(*(lambda h, d: (h, b"", d))(*text_request(pb.TOKENIZE, "warm")))
    answer, rest = client.ask(header, b"", data)
    assert answer.code == pb.OK, answer
    reply = pb.TextReply.FromString(rest[0])
    assert reply.execute_ms <= 50 * PATIENCE, reply
    for shape in ("(" * 60_000, ")" * 60_000, "(a:1)" * 12_000, "\\" * 60_000, "(" * 30_000 + ":" * 30_000):
        header, data = text_request(pb.TOKENIZE, shape)
        answer, rest = client.ask(header, b"", data)
        assert answer.code == pb.OK, answer
        assert pb.TextReply.FromString(rest[0]).execute_ms <= 200 * PATIENCE, shape[:10]


def test_a_text_above_the_limit_names_both_sizes(client):
    header, data = text_request(pb.TOKENIZE, "a" * 65_537)
    refused(client, pb.INVALID_ARGUMENT, header, b"", data, names=[65_537, 65_536])
    header, data = text_request(pb.TOKENIZE, "a" * 65_536)
    assert client.ask(header, b"", data)[0].code == pb.OK


@pytest.mark.parametrize("text", [b"\xff\xfe", b"a\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\x80"])
def test_invalid_utf8_is_refused(client, text):
    for operation in (pb.TOKENIZE, pb.ENCODE_TEXT):
        header, data = text_request(operation, text)
        refused(client, pb.INVALID_ARGUMENT, header, b"", data, names=["UTF-8"])


def test_texts_that_an_operation_does_not_take(client):
    header, data = text_request(pb.TOKENIZE, "a cat", name="negative")
    refused(client, pb.INVALID_ARGUMENT, header, b"", data, names=["negative"])
    header, data = text_request(pb.ENCODE_TEXT, "a cat", name="negative")
    refused(client, pb.INVALID_ARGUMENT, header, b"", data, names=["prompt"])


def test_an_empty_text_is_a_text(client):
    header, data = text_request(pb.ENCODE_TEXT, "")
    answer, rest = client.ask(header, b"", data)
    assert answer.code == pb.OK and list(answer.tensors[0].dims) == [1, 77, 192]


# ---- strangers


def test_http_and_noise_on_the_zmq_port_harm_nobody(shared, client):
    port = int(shared.tcp.rpartition(":")[2])
    for noise in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(4096), b"\xff" + bytes(8) + b"\x7f", b"\x00"):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(noise)
            header, data = text_request(pb.TOKENIZE, "a cat")
            assert client.ask(header, b"", data)[0].code == pb.OK
    for noise in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096)):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(shared.ipc[len("ipc://"):])
            stranger.sendall(noise)


def test_many_half_open_connections_harm_nobody(shared, client):
    port = int(shared.tcp.rpartition(":")[2])
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    header, data = text_request(pb.TOKENIZE, "a cat")
    assert client.ask(header, b"", data)[0].code == pb.OK
    for stranger in strangers:
        stranger.close()


def test_a_client_that_dies_while_it_waits_harms_nobody(shared, client):
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import luna, numpy;"
            "d = luna.connect(sys.argv[2]); print('go', flush=True);"
            "d.decode_latent(numpy.ones((1, 16, 48, 48), 'f4'))")
    child = subprocess.Popen([sys.executable, "-c", code, os.path.dirname(os.path.dirname(pb.__file__)), shared.ipc],
                             stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"go\n"
    wait_until(lambda: shared.status().requests.running >= 1, 20, "the decode runs")
    child.kill()
    child.wait()
    child.stdout.close()
    header, payload = latent_request(random_latent(3))
    assert client.ask(header, b"", payload, seconds=30)[0].code == pb.OK
    wait_until(lambda: shared.status().requests.running == 0, 30, "nothing runs")
