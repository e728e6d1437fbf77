"""The Python package against a daemon that does as it is told; the real one is not needed."""

import asyncio
import os
import pathlib
import subprocess
import sys
import threading

import numpy
import pytest
import zmq

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "clients" / "python"), str(ROOT / "tests" / "system")]

import luna  # noqa: E402
import luna.aio  # noqa: E402
from fake_daemon import FakeDaemon  # noqa: E402
from luna import arrays, cuda, endpoint, requests  # noqa: E402
from luna import luna_pb2 as pb  # noqa: E402


@pytest.fixture
def fake(tmp_path):
    with FakeDaemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def sharing(tmp_path):
    with FakeDaemon(tmp_path, leases=True) as daemon:
        yield daemon


def latent_of(request):
    """An answer to EncodeImage that depends on every byte of the image."""
    total = sum(request.tensor("image")) % 251
    latent = numpy.full((1, 4, 2, 2), total, "<f4")
    request.reply(pb.ImageReply(tiles=1), [("latent", pb.F32, latent.shape, latent.tobytes())])


IMAGE = numpy.arange(1 * 16 * 16 * 3, dtype=numpy.uint8).reshape(1, 16, 16, 3)
LARGE = (
    numpy.arange(1 * 512 * 512 * 3, dtype=numpy.uint32).astype(numpy.uint8).reshape(1, 512, 512, 3)
)


def test_generated_module_is_that_of_the_contract(tmp_path):
    out = tmp_path / "luna.bin"
    subprocess.run(
        [
            "protoc",
            "-I",
            str(ROOT / "messages"),
            f"--descriptor_set_out={out}",
            str(ROOT / "messages" / "luna.proto"),
        ],
        check=True,
    )
    from google.protobuf import descriptor_pb2

    contract = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    committed = descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    for message in contract.message_type:  # protoc adds names for JSON that the module leaves out
        for field in message.field:
            field.ClearField("json_name")
    assert (
        committed == contract
    ), "run: protoc -Imessages --python_out=clients/python/luna messages/luna.proto"


def test_an_image_goes_out_and_a_latent_comes_back(fake):
    fake.on[pb.ENCODE_IMAGE] = latent_of
    with luna.connect(fake.endpoint) as daemon:
        assert daemon.hello["version"] == "0.1.0"
        latent = daemon.encode_image(IMAGE, model="sdxl", tiling="always", tile=256, overlap=32)
    assert latent.shape == (1, 4, 2, 2) and latent.dtype == numpy.float32
    assert (latent == int(IMAGE.astype(int).sum()) % 251).all()
    sent = fake.requests[pb.ENCODE_IMAGE][0]
    assert (sent.header.major, sent.header.kind, len(sent.header.id)) == (1, pb.REQUEST, 16)
    assert sent.header.model == "sdxl" and not sent.header.may_tile
    assert list(sent.header.tensors[0].dims) == [1, 16, 16, 3]
    assert pb.EncodeImage.FromString(sent.body) == pb.EncodeImage(
        tiling=pb.TILING_ALWAYS, tile=256, overlap=32, passes=3
    )


def test_a_request_without_an_answer_is_sent_again_with_the_same_id(fake):
    fake.on[pb.STATUS] = lambda request: request.number and request.reply(pb.Status(pid=7))
    with luna.connect(fake.endpoint) as daemon:
        assert daemon.status()["pid"] == 7
    first, second = fake.requests[pb.STATUS]
    assert first.header.id == second.header.id
    assert second.header.timeout_ms < first.header.timeout_ms


def test_a_daemon_that_comes_back_gets_the_request_again(tmp_path):
    first = FakeDaemon(tmp_path)
    first.on[pb.STATUS] = lambda request: None  # takes it and dies
    result = {}

    def ask():
        with luna.connect(first.endpoint) as daemon:
            result.update(daemon.status())

    asking = threading.Thread(target=ask)
    asking.start()
    lost = first.wait_for(pb.STATUS)[0].header.id
    first.__exit__()
    with FakeDaemon(tmp_path) as second:
        second.on[pb.STATUS] = lambda request: request.reply(pb.Status(pid=8))
        asking.join(10)
        assert result["pid"] == 8
        assert second.requests[pb.STATUS][0].header.id == lost


def test_a_refusal_that_asks_to_wait_is_waited_for(fake):
    def answer(request):
        if request.number < 2:
            request.fail(pb.RESOURCE_EXHAUSTED, "full", retry_after_ms=20)
        else:
            request.reply(pb.Status(pid=9))

    fake.on[pb.STATUS] = answer
    with luna.connect(fake.endpoint) as daemon:
        assert daemon.status()["pid"] == 9
    assert len({request.header.id for request in fake.requests[pb.STATUS]}) == 1


def test_a_refusal_that_asks_for_more_time_than_there_is_is_the_answer(fake):
    fake.on[pb.STATUS] = lambda request: request.fail(pb.UNAVAILABLE, "later", retry_after_ms=60000)
    with luna.connect(fake.endpoint) as daemon:
        with pytest.raises(luna.Unavailable, match="later") as caught:
            daemon.status(timeout=5)
    assert caught.value.retry_after_ms == 60000


@pytest.mark.parametrize("name, number", [item for item in pb.Code.items() if item[1] != pb.OK])
def test_every_code_is_an_exception_of_its_name(fake, name, number):
    fake.on[pb.STATUS] = lambda request: request.fail(number, f"because of {name}")
    kind = getattr(luna, "".join(word.capitalize() for word in name.split("_")))
    with luna.connect(fake.endpoint) as daemon:
        with pytest.raises(kind, match=f"because of {name}") as caught:
            daemon.status()
    assert isinstance(caught.value, luna.Error)
    assert (caught.value.code, caught.value.name) == (number, name)


def test_progress_is_told_in_order_before_the_answer(fake):
    def answer(request):
        assert request.header.want_progress
        for done in range(1, 4):
            request.progress(done, 3)
        latent_of(request)

    fake.on[pb.ENCODE_IMAGE] = answer
    told = []
    with luna.connect(fake.endpoint) as daemon:
        daemon.encode_image(IMAGE, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_call_that_runs_out_of_time_raises_and_takes_the_request_back(fake):
    fake.on[pb.ENCODE_IMAGE] = lambda request: None
    with luna.connect(fake.endpoint) as daemon:
        with pytest.raises(luna.DeadlineExceeded):
            daemon.encode_image(IMAGE, timeout=0.2)
        cancel = fake.wait_for(pb.CANCEL)[0]
    sent = fake.requests[pb.ENCODE_IMAGE][0].header
    assert pb.Cancel.FromString(cancel.body).id == sent.id
    assert cancel.header.id != sent.id
    assert sent.timeout_ms <= 200


def test_late_answers_of_a_call_that_is_over_are_not_mistaken_for_the_next(fake):
    kept = []
    fake.on[pb.STATUS] = lambda request: kept.append(request)

    def answer(request):
        kept[0].reply(pb.Status(pid=1))  # late
        request.reply(pb.PingReply(version="right"))

    with luna.connect(fake.endpoint) as daemon:
        with pytest.raises(luna.DeadlineExceeded):
            daemon.status(timeout=0.1)
        fake.on[pb.PING] = answer
        assert daemon.ping()["version"] == "right"


def test_nobody_at_the_endpoint_is_unavailable(tmp_path):
    with pytest.raises(luna.Unavailable, match="nobody answers at ipc://"):
        luna.connect(f"ipc://{tmp_path}/none.sock", connect_timeout=0.2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dims": [1, 4, 2, 3], "bytes": 64},
        {"dims": [1, 4, 2, 2], "bytes": 60},
        {"dims": [], "bytes": 64},
        {"dtype": 99, "bytes": 64},
        {"where": pb.SHARED, "bytes": 64},
    ],
    ids=["shape", "size", "no shape", "type", "memory"],
)
def test_an_answer_that_does_not_hold_what_it_says_is_an_error(fake, wrong):
    def answer(request):
        header = pb.Header(major=1, kind=pb.REPLY, id=request.header.id)
        header.tensors.add(**{"name": "latent", "dtype": pb.F32, "dims": [1, 4, 2, 2], **wrong})
        fake.socket.send_multipart([*request.route, header.SerializeToString(), b"", bytes(64)])

    fake.on[pb.ENCODE_IMAGE] = answer
    with luna.connect(fake.endpoint) as daemon:
        with pytest.raises(luna.Internal):
            daemon.encode_image(IMAGE)


def test_texts_and_loras_are_sent_as_the_contract_says(fake):
    def answer(request):
        cond = numpy.ones((1, 77, 8), "<f2").tobytes()
        request.reply(
            pb.TextReply(notes=["embedding"], rows=2),
            [("cond", pb.F16, (1, 77, 8), cond), ("negative_cond", pb.F16, (1, 77, 8), cond)],
        )

    fake.on[pb.ENCODE_TEXT] = answer
    with luna.connect(fake.endpoint) as daemon:
        result = daemon.encode_text(
            "größer",
            negative="",
            clip_skip=2,
            dtype="f16",
            loras=["plain", ("style", 0.8), {"reference": "both", "strength_l": 0.5}],
            lora_multiplier=0.5,
        )
    assert result.cond.shape == (1, 77, 8) and result.cond.dtype == numpy.float16
    assert result.pooled is None and result.notes == ["embedding"] and result.rows == 2
    sent = fake.requests[pb.ENCODE_TEXT][0]
    assert [(t.name, list(t.dims)) for t in sent.header.tensors] == [
        ("prompt", [8]),
        ("negative", [0]),
    ]
    assert sent.payloads == ["größer".encode(), b""]
    body = pb.EncodeText.FromString(sent.body)
    assert (body.clip_skip, body.output, body.lora_multiplier) == (2, pb.F16, 0.5)
    assert [(lora.reference, round(lora.strength, 3)) for lora in body.loras] == [
        ("plain", 1.0),
        ("style", 0.8),
        ("both", 1.0),
    ]
    assert body.loras[2].strength_l == 0.5 and not body.loras[2].HasField("strength_g")


def test_tokens_come_back_as_chunks_and_can_be_sent_again(fake):
    ids = numpy.arange(2 * 77, dtype="<i4").reshape(2, 77)
    weights = numpy.full((2, 77), 1.1, "<f8")

    def tokens(request):
        request.reply(
            pb.TextReply(),
            [
                ("l.ids", pb.I32, (2, 77), ids.tobytes()),
                ("l.weights", pb.F64, (2, 77), weights.tobytes()),
            ],
        )

    def encode(request):
        assert request.tensor("l.ids") == ids.tobytes()
        assert request.tensor("l.weights") == weights.tobytes()
        request.reply(pb.TextReply(rows=2))

    fake.on[pb.TOKENIZE], fake.on[pb.ENCODE_TOKENS] = tokens, encode
    with luna.connect(fake.endpoint) as daemon:
        chunks = daemon.tokenize("a cat")
        assert chunks["l"][1][0] == [77, 1.1] and len(chunks["l"]) == 2
        assert daemon.encode_tokens(chunks).rows == 2


def test_models_are_read_page_by_page(fake):
    def answer(request):
        offset = pb.Page.FromString(request.body).offset
        names = [f"model-{i}" for i in range(offset, min(offset + 2, 5))]
        request.reply(
            pb.ModelListReply(
                total=5,
                models=[pb.Model(name=name, offers_vae=True, loaded_on=["cpu"]) for name in names],
            )
        )

    fake.on[pb.MODEL_LIST] = answer
    with luna.connect(fake.endpoint) as daemon:
        models = daemon.models()
    assert [model["name"] for model in models] == [f"model-{i}" for i in range(5)]
    assert models[0]["offers"] == ["vae"] and models[0]["loaded_on"] == ["cpu"]


def test_status_has_every_field_that_scripts_rely_on(fake):
    fake.on[pb.STATUS] = lambda request: request.reply(
        pb.Status(
            models=[pb.Model(name="m", offers_text=True)], services=[pb.ServiceStatus(model="m")]
        )
    )
    with luna.connect(fake.endpoint) as daemon:
        status = daemon.status()
    assert {"version", "pid", "uptime_seconds", "service_type", "state"} <= set(status)
    assert status["requests"] == dict.fromkeys(
        ("total", "running", "queued", "failed", "cancelled"), 0
    )
    assert status["services"][0]["queue_age_seconds"] == 0.0
    assert status["models"][0]["offers"] == ["text"]
    assert status["loras"]["hit_ratio"] == 0.0


def test_an_object_is_of_its_thread(fake):
    caught = []

    def use(daemon):
        try:
            daemon.ping()
        except RuntimeError as error:
            caught.append(error)

    with luna.connect(fake.endpoint) as daemon:
        other = threading.Thread(target=use, args=(daemon,))
        other.start()
        other.join()
    assert len(caught) == 1


def test_large_tensors_go_and_come_in_shared_memory(sharing):
    def answer(request):
        assert request.payloads == []
        room = request.room("latent")
        latent = numpy.full((1, 4, 64, 64), sum(request.tensor("image")[:100]), "<f4").tobytes()
        sharing.leases.view(room)[: len(latent)] = latent
        request.reply(
            pb.ImageReply(), [("latent", pb.F32, (1, 4, 64, 64), (room.shared, len(latent)))]
        )

    sharing.on[pb.ENCODE_IMAGE] = answer
    with luna.connect(sharing.endpoint) as daemon:
        # Room is wanted only where it is large enough: 16 channels of 64 x 64 in f32 are.
        latent = daemon.encode_image(LARGE)
        assert (latent == LARGE.reshape(-1)[:100].sum()).all()
        assert sharing.leases.granted == 2 and sharing.leases.held == {}
        daemon.encode_image(LARGE)
    assert len(sharing.requests[pb.ATTACH]) == 1


def test_a_small_tensor_goes_in_a_frame_even_where_memory_is_shared(sharing):
    sharing.on[pb.ENCODE_IMAGE] = latent_of
    with luna.connect(sharing.endpoint) as daemon:
        daemon.encode_image(IMAGE)
    assert sharing.leases.granted == 0 and not sharing.requests[pb.ATTACH]


def test_without_shared_memory_large_tensors_go_in_frames(fake):
    fake.on[pb.ENCODE_IMAGE] = lambda request: latent_of(request)
    with luna.connect(fake.endpoint) as daemon:
        latent = daemon.encode_image(LARGE)  # ATTACH is refused
    assert (latent == int(LARGE.astype(int).sum()) % 251).all()
    assert len(fake.requests[pb.ENCODE_IMAGE][0].payloads) == 1


def test_a_full_pool_means_frames(sharing):
    sharing.leases.next_offset = 16 << 20
    sharing.on[pb.ENCODE_IMAGE] = latent_of
    with luna.connect(sharing.endpoint) as daemon:
        daemon.encode_image(LARGE)
    assert len(sharing.requests[pb.ENCODE_IMAGE][0].payloads) == 1


def test_a_pool_that_could_be_shrunk_is_not_used(tmp_path):
    with FakeDaemon(tmp_path, leases=True, sealed=False) as fake:
        fake.on[pb.ENCODE_IMAGE] = latent_of
        with luna.connect(fake.endpoint) as daemon:
            daemon.encode_image(LARGE)
        assert len(fake.requests[pb.ENCODE_IMAGE][0].payloads) == 1


def test_when_the_session_ends_the_same_request_goes_out_again_in_frames(sharing):
    def answer(request):
        if request.number == 0:
            sharing.leases.end_sessions()  # and no answer
        else:
            latent_of(request)

    sharing.on[pb.ENCODE_IMAGE] = answer
    with luna.connect(sharing.endpoint) as daemon:
        latent = daemon.encode_image(LARGE)
    first, second = sharing.requests[pb.ENCODE_IMAGE]
    assert first.header.id == second.header.id
    assert first.header.tensors[0].where == pb.SHARED and second.header.tensors[0].where == pb.FRAME
    assert not any(tensor.room for tensor in second.header.tensors)
    assert (latent == int(LARGE.astype(int).sum()) % 251).all()


def test_asyncio_runs_calls_side_by_side(fake):
    kept = []

    def answer(request):
        kept.append(request)
        if len(kept) == 3:  # answered in the other order, once all are there
            for each in reversed(kept):
                latent_of(each)

    fake.on[pb.ENCODE_IMAGE] = answer

    async def run():
        async with await luna.aio.connect(fake.endpoint) as daemon:
            return await asyncio.gather(*(daemon.encode_image(IMAGE + i) for i in range(3)))

    latents = asyncio.run(run())
    expected = [int((IMAGE + i).astype(int).sum()) % 251 for i in range(3)]
    assert [int(latent[0, 0, 0, 0]) for latent in latents] == expected


def test_asyncio_sends_again_waits_and_raises_alike(fake):
    def status(request):
        if request.number == 1:
            request.fail(pb.RESOURCE_EXHAUSTED, "full", retry_after_ms=10)
        elif request.number == 2:
            request.reply(pb.Status(pid=3))

    fake.on[pb.STATUS] = status
    fake.on[pb.MODEL_LOAD] = lambda request: request.fail(pb.NOT_FOUND, "no such model")

    async def run():
        async with await luna.aio.connect(fake.endpoint) as daemon:
            assert (await daemon.status())["pid"] == 3
            with pytest.raises(luna.NotFound):
                await daemon.load_model("none")

    asyncio.run(run())
    assert len(fake.requests[pb.STATUS]) == 3
    assert len({request.header.id for request in fake.requests[pb.STATUS]}) == 1


def test_a_cancelled_task_takes_its_request_back(fake):
    fake.on[pb.ENCODE_IMAGE] = lambda request: None

    async def run():
        async with await luna.aio.connect(fake.endpoint) as daemon:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(daemon.encode_image(IMAGE), 0.2)
            with pytest.raises(luna.DeadlineExceeded):
                await daemon.encode_image(IMAGE, timeout=0.1)
            await asyncio.get_running_loop().run_in_executor(None, fake.wait_for, pb.CANCEL, 2)

    asyncio.run(run())
    cancelled = {pb.Cancel.FromString(request.body).id for request in fake.requests[pb.CANCEL]}
    assert cancelled == {request.header.id for request in fake.requests[pb.ENCODE_IMAGE]}


def test_asyncio_shares_memory_too(sharing):
    sharing.on[pb.ENCODE_IMAGE] = latent_of

    async def run():
        async with await luna.aio.connect(sharing.endpoint) as daemon:
            await asyncio.gather(*(daemon.encode_image(LARGE) for _ in range(3)))

    asyncio.run(run())
    assert sharing.leases.granted >= 2 and sharing.leases.held == {}


def test_events_are_decoded_by_their_topic():
    context = zmq.Context()
    publisher = context.socket(zmq.XPUB)
    port = publisher.bind_to_random_port("tcp://127.0.0.1")
    stream = luna.events(f"tcp://127.0.0.1:{port}", timeout=5)

    def publish():
        publisher.recv()  # the subscription: nothing is lost afterwards
        publisher.send_multipart([b"status", pb.Status(pid=5).SerializeToString()])
        publisher.send_multipart([b"scaling.up", b"\xff\xff"])
        event = pb.Event(sequence=2, signal="queue_depth", value=3, code=pb.NOT_FOUND, id=b"\x01")
        publisher.send_multipart([b"scaling.up", event.SerializeToString()])

    thread = threading.Thread(target=publish)
    thread.start()
    status, decision = next(stream), next(stream)
    thread.join()
    stream.close()
    publisher.close()
    context.term()
    assert status.topic == "status" and status.data["pid"] == 5
    assert decision.topic == "scaling.up"
    assert (decision.data["signal"], decision.data["value"]) == ("queue_depth", 3.0)
    assert (decision.data["code"], decision.data["id"]) == ("NOT_FOUND", "01")


def test_the_example_without_the_package_works(fake, tmp_path):
    def answer(request):
        pixels = bytes([len(request.tensor("latent")) % 251]) * (512 * 512 * 3)
        request.reply(pb.ImageReply(device="cpu"), [("image", pb.U8, (1, 512, 512, 3), pixels)])

    fake.on[pb.DECODE_LATENT] = answer
    (tmp_path / "latent").write_bytes(bytes(4 * 4 * 64 * 64))
    environment = {
        **os.environ,
        "LUNA_ENDPOINT": fake.endpoint,
        "PYTHONPATH": str(ROOT / "clients" / "python" / "luna"),
    }
    script = [sys.executable, str(ROOT / "clients" / "python" / "examples" / "raw_client.py")]
    done = subprocess.run(
        [*script, tmp_path / "latent", tmp_path / "image"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stdout) == (0, "[1, 512, 512, 3] cpu\n"), done.stderr
    assert (tmp_path / "image").read_bytes() == bytes([65536 % 251]) * (512 * 512 * 3)


def test_the_endpoint_is_found_in_the_order_of_the_contract(tmp_path, monkeypatch):
    monkeypatch.setenv("LUNA_ENDPOINT", "tcp://there:1")
    assert endpoint.find("ipc:///here") == "ipc:///here"
    assert endpoint.find() == "tcp://there:1"
    monkeypatch.delenv("LUNA_ENDPOINT")
    monkeypatch.setattr(endpoint, "_SYSTEM", str(tmp_path / "system.sock"))
    monkeypatch.setattr(endpoint.os, "geteuid", lambda: 4711)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert endpoint.find() == "tcp://127.0.0.1:19283"
    (tmp_path / "luna").mkdir()
    context = zmq.Context()
    sockets = [context.socket(zmq.ROUTER) for _ in range(2)]
    sockets[0].bind(f"ipc://{tmp_path}/system.sock")
    assert endpoint.find() == f"ipc://{tmp_path}/system.sock"
    sockets[1].bind(f"ipc://{tmp_path}/luna/luna.sock")
    assert endpoint.find() == f"ipc://{tmp_path}/luna/luna.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(endpoint.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = tmp_path / "luna-4711"
    folder.mkdir(mode=0o700)
    (folder / "luna.sock").symlink_to(tmp_path / "luna" / "luna.sock")
    assert endpoint.find() == f"ipc://{tmp_path}/system.sock"  # the folder is somebody else's
    monkeypatch.setattr(endpoint.os, "geteuid", lambda: folder.stat().st_uid or 4711)
    monkeypatch.setattr(
        endpoint.os, "lstat", lambda path: os.stat_result((0o40755, 0, 0, 1, 4711, 0, 0, 0, 0, 0))
    )
    assert endpoint.find() == f"ipc://{tmp_path}/system.sock"  # it is open to others
    context.destroy(linger=0)
    with pytest.raises(ValueError):
        endpoint.find("http://there")


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int32", "int64"])
def test_arrays_survive_the_way_out_and_back(dtype):
    array = numpy.arange(24).reshape(2, 3, 4).astype(dtype)
    tensor = arrays.from_array("x", array[:, ::-1])  # not contiguous
    assert tensor.dims == (2, 3, 4) and tensor.bytes == array.nbytes
    numpy.testing.assert_array_equal(arrays.to_numpy(tensor), array[:, ::-1])


def test_numbers_that_cannot_be_sent_are_named():
    with pytest.raises(TypeError, match="complex"):
        arrays.from_array("x", numpy.zeros(3, complex))
    assert arrays.from_array("x", numpy.zeros(3), floats_only=True).dtype == pb.F32
    assert arrays.from_array("x", numpy.zeros(3, ">f4")).dtype == pb.F32
    with pytest.raises(ValueError, match="i4"):
        arrays.dtype_number("i4")


def test_bfloat16_becomes_float32_for_numpy():
    tensor = arrays.Tensor(
        "x", pb.BF16, (3,), numpy.array([0x3F80, 0xC000, 0x7F80], "<u2").tobytes()
    )
    assert arrays.to_numpy(tensor).tolist() == [1.0, -2.0, float("inf")]


class OnGpu:
    """What CuPy's and Numba's arrays are to us."""

    def __init__(self, typestr="<f4", shape=(2, 3), **fields):
        self.__cuda_array_interface__ = {
            **{"typestr": typestr, "shape": shape, "data": (4096, False), "version": 3},
            **fields,
        }


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"typestr": "<c8"}, "complex64, which cannot be sent"),
        ({"strides": (4, 8)}, "make it contiguous"),
        ({"shape": (0, 3)}, "does not know"),
        ({}, "does not know"),
    ],
    ids=["type", "strides", "empty", "no driver"],
)
def test_arrays_on_a_gpu_that_cannot_be_sent_say_why(monkeypatch, fields, words):
    monkeypatch.setattr(cuda, "memory", lambda *_: None)
    with pytest.raises(TypeError, match=words):
        arrays.from_array("x", OnGpu(**fields))


def test_an_array_on_a_gpu_keeps_type_shape_and_place(monkeypatch):
    monkeypatch.setattr(cuda, "memory", lambda *told: cuda.Memory("card", *told))
    array = OnGpu("<f2", (1, 4, 2, 3), strides=(48, 12, 6, 2), stream=5)
    tensor = arrays.from_array("x", array)
    assert (tensor.dtype, tensor.dims, tensor.bytes) == (pb.F16, (1, 4, 2, 3), 48)
    memory = tensor.memory
    assert (memory.pointer, memory.stream, memory.owner) == (4096, 5, array) and tensor.is_whole


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8"])
def test_torch_tensors_come_back_as_torch_tensors(dtype):
    torch = pytest.importorskip("torch")
    tensor = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype)).transpose(0, 1)
    back = arrays.like(arrays.from_array("x", tensor), tensor)
    assert back.dtype == tensor.dtype and torch.equal(back, tensor)


def test_encodings_of_a_text_go_to_the_device_that_was_asked_for():
    torch = pytest.importorskip("torch")
    cond = arrays.from_array("cond", numpy.arange(6, dtype=numpy.float32).reshape(1, 2, 3))
    for wanted, device in ((True, "cpu"), ("meta", "meta"), (torch.device("cpu"), "cpu")):
        made = requests._convert(wanted)(cond)
        assert made.shape == (1, 2, 3) and made.device.type == device
    assert isinstance(requests._convert(False)(cond), numpy.ndarray)
