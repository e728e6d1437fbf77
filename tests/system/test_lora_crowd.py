"""Sixteen clients put, use, pin, evict, get and scan adapters at once, in both ways of applying them, while files
change under their names. What they hear is no matter, but everybody is answered, and in the end nothing is held.

LUNA_CROWD_SECONDS says for how long; ./dev test runs it under ThreadSanitizer, ./dev soak does so for a minute."""

import os
import random
import threading
import time

import numpy as np
import pytest

from conftest import Raw, request, wait_until
from files import pack_safetensors
from luna import luna_pb2 as pb
from test_loras import Client, adapter, let_go, stack_request, start, stop

SECONDS = float(os.environ.get("LUNA_CROWD_SECONDS", "6"))
CLIENTS = 16
STEM = "lora_te1_text_model_encoder_layers_0_mlp_fc1"


def loha(seed):
    """One that has to be merged, with floats for the UNet."""
    values = np.random.default_rng(seed)
    sides = {"hada_w1_a": (256, 2), "hada_w1_b": (2, 64), "hada_w2_a": (256, 2), "hada_w2_b": (2, 64)}
    return pack_safetensors({"lora_unet_x.lora_up.weight": np.full((1000, 1), seed, np.float32),
                             **{f"{STEM}.{key}": values.standard_normal(shape).astype(np.float32)
                                for key, shape in sides.items()}})


UPLOADS = [adapter(100, unet=2000), adapter(101, unet=2000), loha(102), adapter(103, unet=2000)]


def is_fine(operation, answer, is_admin):
    """What may be said when others take away what one asks for; never that something broke."""
    if answer.code in (pb.OK, pb.NOT_FOUND, pb.FAILED_PRECONDITION):
        return True
    if answer.code == pb.PERMISSION_DENIED:  # the other user's
        return not is_admin
    return answer.code == pb.RESOURCE_EXHAUSTED and (operation == pb.ENCODE_TEXT or answer.retry_after_ms > 0)


def make_request(luck, number):
    """(header, body, payloads) of the next deed."""
    which = luck.randrange(4)
    name = f"put-{number % 2}-{which}"
    deed = luck.choice(["put"] * 3 + ["name"] * 5 + ["get"] * 2 + ["scan"] * 2 + ["encode"] * 2)
    if deed == "put":
        data = UPLOADS[which]
        return request(pb.LORA_PUT, [("file", pb.U8, [len(data)], len(data))]), pb.LoraPut(name=name), [data]
    if deed == "name":
        operation = luck.choice([pb.LORA_EVICT, pb.LORA_HAS, pb.LORA_PIN, pb.LORA_UNPIN, pb.LORA_UNPIN])
        return request(operation), pb.LoraName(reference=name), []
    if deed == "get":
        return request(pb.LORA_GET), pb.LoraGet(reference=luck.choice([name, "file-0"])), []
    if deed == "scan":
        return request(luck.choice([pb.LORA_SCAN, pb.LORA_LIST, pb.LORA_STATS])), b"", []
    text = f"a cat {luck.random()}"
    loras, one_shots = [{"reference": luck.choice([name, f"file-{which}"]), "strength": 0.5}], {}
    if luck.random() < 0.3:
        one_shots["lora.0"] = UPLOADS[luck.choice([0, 2])]
        loras.append({"tensor": "lora.0", "strength": 0.25})
    header, body, *payloads = stack_request(loras, one_shots, text)
    return header, body, payloads


class Person(threading.Thread):
    """One of the crowd."""

    def __init__(self, daemon, number, end):
        super().__init__()
        self.daemon_under_test, self.number, self.end = daemon, number, end
        self.done = 0
        self.codes = {}
        self.problems = []

    def run(self):
        luck = random.Random(self.number)
        is_admin = self.number % 2 == 1  # over ipc
        client = Raw(self.daemon_under_test.ipc if is_admin else self.daemon_under_test.tcp)
        header = body = None
        try:
            while time.monotonic() < self.end:
                header, body, payloads = make_request(luck, self.number)
                answer, _ = client.ask(header, body, *payloads, seconds=60)
                self.done += 1
                key = (pb.Operation.Name(header.operation), pb.Code.Name(answer.code))
                self.codes[key] = self.codes.get(key, 0) + 1
                if not is_fine(header.operation, answer, is_admin):
                    self.problems.append((*key, answer.message))
        except BaseException as error:  # the test tells
            asked = None if header is None else pb.Operation.Name(header.operation)
            self.problems.append((self.number, self.done, asked, str(body), repr(error)))
        finally:
            client.close()


class Files(threading.Thread):
    """Who changes files."""

    def __init__(self, folder, end):
        super().__init__()
        self.folder, self.end = folder, end
        self.done = 0

    def run(self):
        luck = random.Random(99)
        while time.monotonic() < self.end:
            path = self.folder / f"file-{luck.randrange(4)}.safetensors"
            if luck.random() < 0.2:
                path.unlink(missing_ok=True)
            else:
                part = path.with_suffix(".part")
                seed = luck.randrange(1000)
                part.write_bytes(loha(seed) if seed % 3 == 0 else adapter(seed, unet=1000))
                part.rename(path)
            self.done += 1
            time.sleep(0.02)  # the beat of the changes


@pytest.fixture
def daemon(models):
    running = start(models, memory_limit_mb=2, entries_max=12, merged_limit_mb=1)
    yield running
    stop(running)


def nothing_is_held(daemon):
    """Once everything was unpinned and evicted."""
    client = Client(daemon)
    let_go(daemon, client, lambda lora: lora.hash)
    wait_until(lambda: client.stats().totals.entries == 0, 10, "nothing is held")
    wait_until(lambda: client.stats().merged_bytes == client.stats().adapter_bytes == 0, 10, "nor by an executor")
    stats = client.stats()
    assert stats.totals.bytes == 0 and stats.pinned == 0 and stats.uploads == 0


def test_sixteen_clients_put_use_evict_and_scan_while_files_change(daemon):
    pids = (daemon.core_pid, daemon.executor_pid)
    end = time.monotonic() + SECONDS
    crowd = [Person(daemon, number, end) for number in range(CLIENTS)]
    changer = Files(daemon.loras, end)
    for thread in [*crowd, changer]:
        thread.start()
    for thread in [*crowd, changer]:
        thread.join()
    codes = {}
    for person in crowd:
        for key, count in person.codes.items():
            codes[key] = codes.get(key, 0) + count
    print(f"{sum(codes.values())} requests, {changer.done} changes of files: {codes}")
    print("each:", [person.done for person in crowd])
    problems = [problem for person in crowd for problem in person.problems]
    assert not problems, (len(problems), problems[:5])
    assert all(person.done for person in crowd)
    assert (daemon.core_pid, daemon.executor_pid) == pids  # nobody died, of a sanitizer or otherwise
    assert codes.get(("ENCODE_TEXT", "OK"), 0) > 0 and codes.get(("LORA_SCAN", "OK"), 0) > 0
    nothing_is_held(daemon)
    assert daemon.is_serving()
