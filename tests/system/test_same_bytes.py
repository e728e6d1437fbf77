"""One request, one SHA-256: alone, among others, whatever the threads and workers."""

import hashlib
import threading

import numpy as np
import pytest

import luna
from conftest import wait_until
from files import random_latent

LATENT = random_latent(1, 20, 28)
IMAGE = np.random.default_rng(2).random((1, 96, 128, 3), np.float32)
PROMPT = "a (red:1.2) fox in the snow, " * 12


def digests(client):
    """SHA-256 of every kind of answer."""
    text = client.encode_text(PROMPT, negative="blurry")
    answers = {
        "decode": client.decode_latent(LATENT),
        "tiled decode": client.decode_latent(LATENT, tiling="always", tile=128, overlap=32),
        "encode": client.encode_image(IMAGE),
        "cond": text.cond, "pooled": text.pooled,
        "negative": text.negative_cond,
    }
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in answers.items()}


class Mates:
    """Other clients with other requests of the same kinds, NaN and long ones included, until closed."""

    def __init__(self, endpoint, count):
        self.done = [0] * count
        self.stop = threading.Event()
        self.problems = []
        self.threads = [threading.Thread(target=self._run, args=(endpoint, i)) for i in range(count)]
        for thread in self.threads:
            thread.start()

    def _run(self, endpoint, index):
        try:
            with luna.connect(endpoint, connect_timeout=20) as client:
                latent = random_latent(100 + index, 4 + index % 5, 6)
                if index % 5 == 0:
                    latent[0, 0, 0, 0] = np.nan
                while not self.stop.is_set():
                    if index % 3 == 0:
                        client.decode_latent(latent)
                    else:
                        client.encode_text("mate " * (1 + 40 * index % 300))
                    self.done[index] += 1
        except Exception as error:
            self.problems.append(error)

    def close(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert not self.problems, self.problems


@pytest.fixture(scope="module")
def alone(shared):
    with luna.connect(shared.ipc) as client:
        return digests(client)


def test_again(shared, alone):
    with luna.connect(shared.ipc) as client:
        assert digests(client) == alone


def test_with_15_mates(shared, alone):
    mates = Mates(shared.ipc, 15)
    try:
        wait_until(lambda: all(mates.done), 60, "every mate got an answer")
        with luna.connect(shared.ipc) as client:
            assert digests(client) == alone
    finally:
        mates.close()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_with_any_number_of_threads(make_daemon, alone, threads):
    assert digests(make_daemon(settings={"service.threads": threads}).connect()) == alone


def test_with_two_workers_of_each(make_daemon, alone):
    daemon = make_daemon(settings={"scaling.vae_workers": "2-2", "scaling.clip_workers": "2-2"})
    daemon.wait_workers("vae", 2)
    daemon.wait_workers("text", 2)
    mates = Mates(daemon.ipc, 6)
    try:
        wait_until(lambda: all(mates.done), 60, "every mate got an answer")
        assert digests(daemon.connect()) == alone
    finally:
        mates.close()


def test_after_the_executor_died(daemon, alone):
    client = daemon.connect()
    assert digests(client) == alone
    daemon.kill_child("executor-process")
    assert digests(client) == alone
