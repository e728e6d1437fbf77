"""Clients on the daemon's own GPU: tensors stay on it, by CUDA IPC, on the emulated device.

The client's side is the package as it is, on a driver of no card (tests/emulation/fake_cuda.c), whose numbers of
devices are not the daemon's.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import luna
import luna.aio
from conftest import BINARY, ROOT, is_alive, latent_request, request, text_request, wait_until
from device_arrays import LIBRARY, OTHER, SERVED, Array, library, make_torch, to_numpy
from files import random_latent
from luna import cuda, luna_pb2 as pb, shared
from test_emulated import EMULATED, MB, cards, device, faults  # noqa: F401
from test_emulated import make_emulated as start_emulated  # noqa: F401

pytestmark = pytest.mark.skipif(not EMULATED.exists() or not LIBRARY.exists(),
                                reason="this build has no emulated device")
UUID = "GPU-00000000-0000-0000-0000-000000000000"
LATENT = random_latent(1, 1, 2)

CHILD = """
import sys
sys.path[:0] = sys.argv[1:3]
import luna
from device_arrays import Array
from files import random_latent
client = luna.connect(sys.argv[3])
client.decode_latent(Array(random_latent(1, 1, 2)))
print("leased", flush=True)
for line in sys.stdin:
    client.decode_latent(Array(random_latent(1, 2, 3)))
"""


@pytest.fixture(autouse=True)
def driver():
    return library()


@pytest.fixture
def make_emulated(start_emulated):  # noqa: F811
    """Starts daemons that lend: until its executor has called, a daemon refers clients to the host."""
    def make(*settings, **options):
        daemon = start_emulated(*settings, **options)
        wait_lends(daemon)
        return daemon
    return make


def transport(daemon):
    return daemon.status().transport


def mapped():
    return library().fake_count(1)


def session_of(daemon):
    attach = pb.AttachReply.FromString(daemon.raw().ask(request(pb.ATTACH))[1][0])
    return shared.Session(attach.path)


def lease(session, **fields):
    """The LeaseReply of a request for device memory; nobody says then whether it is open."""
    reply, descriptors = session._exchange(pb.LeaseRequest(**{"acquire_bytes": MB, "device": UUID, **fields}))
    assert len(descriptors) == (reply.code == pb.OK)
    for descriptor in descriptors:
        os.close(descriptor)
    return reply


def wait_lends(daemon):
    """Until the daemon's executor has called the core that there is."""
    session = session_of(daemon)
    # Refused for its size, no longer because nobody has such a device.
    wait_until(lambda: lease(session, acquire_bytes=1 << 60).code == pb.INVALID_ARGUMENT, 20, "memory can be had")
    session.close()


def decode(client, latent=LATENT, **options):
    return to_numpy(client.decode_latent(Array(latent), **options))


# ---- both ways


def test_tensors_stay_on_the_gpu_both_ways_with_the_bytes_of_frames(make_emulated):
    daemon = make_emulated()
    plain = daemon.connect(shared_memory=False)
    image = plain.decode_latent(LATENT)
    latent = plain.encode_image(image)
    before = transport(daemon)
    with luna.connect(daemon.ipc) as client:
        answer = client.decode_latent(Array(LATENT))
        assert isinstance(answer, luna.DeviceArray)
        assert to_numpy(answer).tobytes() == image.tobytes()
        assert to_numpy(client.encode_image(answer)).tobytes() == latent.tobytes()
        after = transport(daemon)
        moved = LATENT.nbytes + 2 * image.nbytes + latent.nbytes
        assert after.device_bytes - before.device_bytes == moved
        assert (after.frame_bytes, after.shared_bytes) == (before.frame_bytes, before.shared_bytes)
        assert after.leases == 1 and device(daemon).lent_bytes == 2 * MB  # one buffer for all calls
        assert daemon.cli_json("status")["transport"]["device_bytes"] == after.device_bytes
        assert daemon.cli_json("status")["devices"][0]["lent_bytes"] == 2 * MB
        assert mapped() == 1
    assert mapped() == 0
    wait_until(lambda: transport(daemon).leases == 0 and device(daemon).lent_bytes == 0, 5, "it comes back")


def test_not_a_number_on_the_gpu_is_told_as_elsewhere(make_emulated):
    daemon = make_emulated()
    with luna.connect(daemon.ipc) as client:
        for where, value in ((0, np.nan), (-1, -np.inf), (None, 0)):
            latent = LATENT.copy()
            if where is not None:
                latent.flat[where] = value
            image, details = client.decode_latent(Array(latent), dtype="u8", details=True)
            assert details["not_finite_input"] == details["not_finite_output"] == (where is not None)
        pixels = np.full((1, 8, 16, 3), np.inf, np.float32)
        assert client.encode_image(Array(pixels), details=True)[1]["not_finite_input"]
    assert transport(daemon).shared_bytes == transport(daemon).frame_bytes == 0


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "u8"])
def test_torch_tensors_come_back_as_torch_tensors_on_their_device(make_emulated, monkeypatch, dtype):
    daemon = make_emulated()
    wanted = daemon.connect(shared_memory=False).decode_latent(LATENT.astype(np.float16), dtype=dtype)
    torch = make_torch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    latent = torch.tensor(LATENT.astype(np.float16).tobytes(), LATENT.shape, torch.float16)
    with luna.connect(daemon.ipc) as client:
        image = client.decode_latent(latent, dtype=dtype)
    names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "u8": "uint8"}
    assert (image.dtype.name, image.device, image.shape) == (names[dtype], latent.device, wanted.shape)
    if dtype == "bf16":
        assert np.frombuffer(image.data(), "<u2").tolist() == (wanted.view("<u4") >> 16).ravel().tolist()
    else:
        assert image.data() == wanted.tobytes()
    assert transport(daemon).device_bytes == LATENT.nbytes // 2 + len(image.data())


def test_bf16_goes_in_as_it_is(make_emulated, monkeypatch):
    daemon = make_emulated()
    halves = (LATENT.view("<u4") >> 16).astype("<u2")
    header, _ = latent_request(LATENT)
    header.tensors[0].dtype, header.tensors[0].bytes = pb.BF16, halves.nbytes
    wanted = daemon.raw().ask(header, b"", halves.tobytes())[1][1]
    torch = make_torch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    with luna.connect(daemon.ipc) as client:
        image = client.decode_latent(torch.tensor(halves.tobytes(), LATENT.shape, torch.bfloat16))
    assert image.data() == wanted


def test_a_larger_request_gets_a_larger_buffer_and_the_small_one_goes_back(make_emulated):
    daemon = make_emulated()
    with luna.connect(daemon.ipc) as client:
        decode(client)
        decode(client, random_latent(1, 1, 1))
        assert transport(daemon).leases == 1
        with pytest.raises(luna.InvalidArgument, match="C 3 or 4"):
            client.encode_image(Array(np.zeros((1, 448, 448, 5), np.float32)))
        wait_until(lambda: transport(daemon).leases == 1, 5, "one buffer")
        wait_until(lambda: device(daemon).lent_bytes == 6 * MB, 5, "the larger one")


def test_asyncio_has_a_buffer_for_each_call_that_runs(make_emulated):
    daemon = make_emulated()
    wanted = daemon.connect(shared_memory=False).decode_latent(LATENT)

    async def run():
        async with await luna.aio.connect(daemon.ipc) as client:
            first = await client.decode_latent(Array(LATENT))  # attaches
            return [first, *await asyncio.gather(*(client.decode_latent(Array(LATENT)) for _ in range(3)))]

    assert all(np.array_equal(to_numpy(image), wanted) for image in asyncio.run(run()))
    assert transport(daemon).device_bytes == 4 * (LATENT.nbytes + wanted.nbytes)
    assert mapped() == 0


def test_the_ledger_and_the_driver_agree_to_the_byte_with_what_is_lent(make_emulated):
    daemon = make_emulated()
    client = daemon.connect()
    decode(client)

    def agree():
        now = device(daemon)
        held = now.weights_bytes + now.reserved_bytes
        return now.lent_bytes == 2 * MB and now.memory_free_bytes + held == now.memory_total_bytes

    wait_until(agree, 10, "what is held and what is free make the whole")


# ---- several cards


def test_a_job_runs_on_the_card_that_its_tensors_lie_on(make_daemon, cards, caplog):
    daemon = make_daemon(settings={"scaling.vae_workers": "2-2", "scaling.memory_margin_mb": 16}, environment=cards(2))
    client = daemon.connect(shared_memory=False)
    wanted = client.decode_latent(LATENT)
    wait_until(lambda: daemon.service("vae").workers == 2, 20, "a worker on each card")
    wait_until(lambda: all(lease(session_of(daemon), acquire_bytes=1 << 60, device=card.uuid).code == pb.INVALID_ARGUMENT
                           for card in daemon.status().devices), 20, "both cards lend")
    before = transport(daemon).device_bytes
    together = threading.Barrier(3)

    def decode_often(card):
        with luna.connect(daemon.ipc) as own:
            for _ in range(4):
                assert to_numpy(own.decode_latent(Array(LATENT, card))).tobytes() == wanted.tobytes()
            together.wait(60)  # both have decoded
            together.wait(60)  # both were counted

    with caplog.at_level(logging.DEBUG, "luna"), ThreadPoolExecutor() as pool:
        runs = [pool.submit(decode_often, card) for card in (SERVED, OTHER)]
        together.wait(60)
        lent = [d.lent_bytes for d in daemon.status().devices]
        together.wait(60)
        for run in runs:
            run.result()
    assert lent == [2 * MB, 2 * MB]
    assert transport(daemon).device_bytes - before == 8 * (LATENT.nbytes + wanted.nbytes)
    assert daemon.status().requests.failed == 0 and not caplog.records


# ---- falling back


def test_another_gpu_than_the_daemons_goes_by_the_host_and_says_so_once(make_emulated, caplog):
    daemon = make_emulated()
    wanted = daemon.connect(shared_memory=False).decode_latent(LATENT)
    with caplog.at_level(logging.DEBUG, "luna"), luna.connect(daemon.ipc) as client:
        for _ in range(2):
            answer = client.decode_latent(Array(LATENT, OTHER))
            assert np.array_equal(to_numpy(answer), wanted)
    assert transport(daemon).device_bytes == 0
    (said,) = [r.getMessage() for r in caplog.records]
    assert "GPU-00000000-0000-0000-0000-000000000001" in said and UUID in said  # which it is, and what there is


def test_a_daemon_without_a_gpu_answers_by_the_host(shared):
    with luna.connect(shared.ipc) as client, luna.connect(shared.ipc, shared_memory=False) as plain:
        assert np.array_equal(decode(client), plain.decode_latent(LATENT))


def test_a_remote_client_sends_frames(make_emulated):
    daemon = make_emulated()
    with luna.connect(daemon.tcp) as client:
        assert np.array_equal(decode(client), daemon.connect(shared_memory=False).decode_latent(LATENT))
    assert transport(daemon).device_bytes == transport(daemon).shared_bytes == 0


def test_a_full_card_is_asked_for_nothing_more(make_emulated, faults):
    daemon = make_emulated()
    client = daemon.connect()
    wanted = daemon.connect(shared_memory=False).decode_latent(LATENT)
    faults.set("hog", device(daemon).memory_free_bytes - 17 * MB)
    wait_until(lambda: device(daemon).memory_free_bytes <= 17 * MB, 5, "the executor sees the hog")
    reply = lease(session_of(daemon))
    assert reply.code == pb.RESOURCE_EXHAUSTED and "2 MB of device emulated" in reply.message, reply
    assert "margin of 16 MB" in reply.message and "17 MB" in reply.message
    assert np.array_equal(decode(client), wanted)
    assert transport(daemon).device_bytes == device(daemon).lent_bytes == 0


def test_an_allocation_that_fails_is_a_refusal(make_emulated, faults):
    daemon = make_emulated()
    session = session_of(daemon)
    faults.set("refuse", 2 * MB)
    assert lease(session).code == pb.RESOURCE_EXHAUSTED
    assert not faults.is_set("refuse") and device(daemon).lent_bytes == 0
    assert lease(session).code == pb.OK


def test_a_handle_that_cannot_be_opened_is_given_back(make_emulated, caplog):
    daemon = make_emulated()
    wanted = daemon.connect(shared_memory=False).decode_latent(LATENT)
    library().fake_fail_to_open(1)
    try:
        with caplog.at_level(logging.DEBUG, "luna"), luna.connect(daemon.ipc) as client:
            assert np.array_equal(decode(client), wanted)
            assert np.array_equal(decode(client), wanted)
            wait_until(lambda: transport(daemon).leases == 0, 5, "the lease comes back")
    finally:
        library().fake_fail_to_open(0)
    assert [r.getMessage() for r in caplog.records if "cuIpcOpenMemHandle" in r.getMessage()]
    assert transport(daemon).device_bytes == 0


def test_what_is_not_dense_is_refused_here(make_emulated):
    with luna.connect(make_emulated().ipc) as client:
        with pytest.raises(TypeError, match="make it contiguous"):
            client.decode_latent(Array(LATENT, strides=(4, 4, 4, 4)))


# ---- ends


@pytest.fixture
def child():
    """A client in a process of its own, with a lease of device memory; a line makes it decode."""
    started = []

    def start(daemon):
        words = [sys.executable, "-c", CHILD, ROOT / "clients" / "python", ROOT / "tests" / "system", daemon.ipc]
        done = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                env={**os.environ, "LUNA_BINARY": str(BINARY)})
        started.append(done)
        assert done.stdout.readline() == "leased\n"
        return done

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_the_memory_of_a_client_that_is_killed_comes_back(make_emulated, child):
    daemon = make_emulated()
    events = daemon.events
    process = child(daemon)
    wait_until(lambda: transport(daemon).leases == 1 and device(daemon).lent_bytes == 2 * MB, 5, "a lease")
    process.send_signal(signal.SIGKILL)
    wait_until(lambda: transport(daemon).leases == 0, 1, "it ends with its client")
    wait_until(lambda: device(daemon).lent_bytes == 0, 1, "the memory is given back")
    assert events.wait_topic("lease.reclaimed").value == 1


def test_memory_that_a_job_writes_to_outlives_its_client(make_emulated, child, faults):
    daemon = make_emulated()
    process = child(daemon)
    faults.set("pace", 5000)
    process.stdin.write("go\n")
    process.stdin.flush()
    wait_until(lambda: daemon.status().requests.running == 1, 20, "it runs")
    process.send_signal(signal.SIGKILL)
    wait_until(lambda: transport(daemon).leases == 1, 5, "the job has it still")
    before = daemon.executor_pid
    faults.clear("pace")
    wait_until(lambda: device(daemon).lent_bytes == 0, 20, "then it is given back")
    assert daemon.executor_pid == before
    with luna.connect(daemon.ipc) as client:
        assert np.isfinite(decode(client)).all()


def test_an_executor_that_ends_takes_the_lease_with_it_and_the_client_gets_another(make_emulated):
    daemon = make_emulated()
    with luna.connect(daemon.ipc) as client:
        wanted = decode(client)
        daemon.kill_child("executor-process")
        assert np.array_equal(decode(client), wanted)
        before = transport(daemon).device_bytes

        def goes_by_the_device():
            assert np.array_equal(decode(client), wanted)
            return transport(daemon).device_bytes > before

        wait_until(goes_by_the_device, 20, "a new lease")
        assert mapped() == 1


def test_an_executor_that_ends_in_the_middle_costs_no_request(make_emulated, faults):
    daemon = make_emulated()
    with luna.connect(daemon.ipc) as other, luna.connect(daemon.ipc) as client:
        wanted = other.decode_latent(LATENT)
        decode(client)
        faults.set("pace", 20000)
        killer = threading.Thread(target=lambda: (
            wait_until(lambda: daemon.status().requests.running == 1, 20, "it runs"),
            daemon.kill_child("executor-process"), faults.clear("pace")))
        killer.start()
        assert np.array_equal(decode(client), wanted)
        killer.join()


def test_a_core_that_ends_costs_no_request(make_emulated):
    daemon = make_emulated()
    with luna.connect(daemon.ipc) as client:
        wanted = decode(client)
        executor = daemon.executor_pid
        daemon.kill_child("core-process")
        assert np.array_equal(decode(client), wanted)
        assert is_alive(executor)
        before = transport(daemon).device_bytes

        def goes_by_the_device():
            decode(client)
            return transport(daemon).device_bytes > before

        wait_until(goes_by_the_device, 20, "a lease of the new core")
        wait_until(lambda: device(daemon).lent_bytes == 2 * MB, 5, "the client has let go of what the old one lent")


# ---- lies


def ask_with(daemon, reply, **change):
    """The answer to a decode whose latent is in that lease, after a change."""
    fields = {"pool": reply.pool, "slot": reply.slot, "generation": reply.generation, **change}
    header, _ = latent_request(LATENT)
    header.tensors[0].where = pb.DEVICE
    header.tensors[0].shared.CopyFrom(pb.SharedRef(**fields))
    return daemon.raw().ask(header)[0]


def test_references_that_lie_are_refused_with_their_value(make_emulated):
    daemon = make_emulated()
    session = session_of(daemon)
    reply = lease(session)
    assert ask_with(daemon, reply).code == pb.OK
    for change, code, words in (({"offset": 2 * MB - 16}, pb.INVALID_ARGUMENT, str(2 * MB - 16)),
                                ({"offset": 2**64 - 16}, pb.INVALID_ARGUMENT, "18446744073709551600"),
                                ({"generation": 77}, pb.NOT_FOUND, "generation 77"),
                                ({"slot": 9999}, pb.NOT_FOUND, "slot 9999"),
                                ({"pool": 99}, pb.NOT_FOUND, "device lease 99 is not yours")):
        answer = ask_with(daemon, reply, **change)
        assert (answer.code, words in answer.message) == (code, True), answer
    host = session.acquire(MB)
    answer = ask_with(daemon, host)
    assert answer.code == pb.INVALID_ARGUMENT and "is shared memory, not device memory" in answer.message
    header, _ = latent_request(LATENT)
    header.tensors[0].where = pb.SHARED
    header.tensors[0].shared.CopyFrom(pb.SharedRef(pool=reply.pool, generation=reply.generation))
    answer, _ = daemon.raw().ask(header)
    assert answer.code == pb.INVALID_ARGUMENT and "is device memory, not shared memory" in answer.message
    session.close()
    assert daemon.is_serving()


def test_memory_that_was_given_back_cannot_be_named_or_opened(make_emulated):
    daemon = make_emulated()
    session = session_of(daemon)
    array = Array(LATENT)
    card = cuda.memory(array.pointer, 1).card
    reply = lease(session)
    back = pb.LeaseRequest(release_pool=reply.pool, release_slot=reply.slot, release_generation=reply.generation)
    card.close(card.open(reply.handle))
    assert session._exchange(back)[0].code == pb.OK
    again = session._exchange(back)[0]
    assert again.code == pb.NOT_FOUND and f"device lease {reply.pool} is not yours" in again.message
    wait_until(lambda: device(daemon).lent_bytes == 0, 5, "it was freed")
    assert ask_with(daemon, reply).code == pb.NOT_FOUND
    for handle in (reply.handle, os.urandom(64), bytes(64), b"short"):
        with pytest.raises(cuda.Error):
            card.open(handle)
    assert mapped() == 0


def test_text_has_no_tensors_on_the_gpu(make_emulated):
    daemon = make_emulated()
    reply = lease(session_of(daemon))
    header, _ = text_request(pb.ENCODE_TEXT, "a cat")
    header.tensors[0].where = pb.DEVICE
    header.tensors[0].shared.CopyFrom(pb.SharedRef(pool=reply.pool, generation=reply.generation))
    answer, _ = daemon.raw().ask(header, pb.EncodeText())
    assert answer.code == pb.UNIMPLEMENTED and "images and latents" in answer.message


def test_what_is_too_much_or_nowhere_is_refused_and_says_what_there_is(make_emulated):
    daemon = make_emulated(total=4096)
    session, second = session_of(daemon), session_of(daemon)
    answer = lease(session, device="GPU-none")
    assert answer.code == pb.NOT_FOUND and '"GPU-none"' in answer.message and UUID in answer.message
    answer = lease(session, acquire_bytes=1 << 60)
    assert answer.code == pb.INVALID_ARGUMENT and str(1 << 60) in answer.message
    replies = [lease((session, second)[i % 2]) for i in range(8)]
    assert {reply.code for reply in replies} == {pb.OK} and len({reply.pool for reply in replies}) == 8
    answer = lease(second)
    assert answer.code == pb.RESOURCE_EXHAUSTED and "8 leases of device memory are yours" in answer.message
    # One session cannot give back what another holds.
    mine = replies[0]
    foreign = pb.LeaseRequest(release_pool=mine.pool, release_slot=mine.slot, release_generation=mine.generation)
    assert second._exchange(foreign)[0].code == pb.NOT_FOUND
    session.close()
    wait_until(lambda: transport(daemon).leases == 4, 5, "four come back")
    assert lease(second, acquire_bytes=1 << 30).code == pb.RESOURCE_EXHAUSTED  # with what it has, above 1 GiB
    second.close()
    wait_until(lambda: device(daemon).lent_bytes == 0, 5, "all come back")
