"""Models at run time: registered, loaded, unloaded, while processes die and files change under the daemon."""

import json
import os
import pathlib
import shutil
import signal

import pytest

from conftest import Raw, is_alive, latent_request, request, text_request, wait_until
from files import random_latent, read_safetensors, pack_safetensors
from luna import luna_pb2 as pb

LATENT = random_latent(1)


@pytest.fixture
def own(models, request):
    """A copy of the small VAE that the test may damage: its path."""
    folder = models / "own"
    folder.mkdir(exist_ok=True)
    path = folder / f"{request.node.name}.safetensors"
    shutil.copy(models / "vae.safetensors", path)
    yield path
    path.unlink(missing_ok=True)


def exchange(daemon, *frames, seconds=40):
    """One question on a connection of its own, closed at once: tests ask often."""
    client = Raw(daemon.ipc)
    try:
        return client.ask(*frames, seconds=seconds)
    finally:
        client.close()


def ask(daemon, operation, body, seconds=30):
    answer, rest = exchange(daemon, request(operation), body, seconds=seconds)
    return answer, pb.ModelReply.FromString(rest[0]).model if answer.code == pb.OK else None


def register(daemon, name, path):
    answer, model = ask(daemon, pb.MODEL_REGISTER, pb.ModelRegister(name=name, files=[f"own/{path.name}"]))
    assert answer.code == pb.OK, answer
    return model


def load(daemon, name="own"):
    """As a conforming client asks: again while no executor is there."""
    def answered():
        answer = ask(daemon, pb.MODEL_LOAD, pb.ModelName(name=name))
        return None if answer[0].code == pb.UNAVAILABLE and answer[0].retry_after_ms else answer
    return wait_until(answered, 20, f"{name} is loaded, or not")


def unload(daemon, name="own"):
    return ask(daemon, pb.MODEL_UNLOAD, pb.ModelName(name=name))


def decode(daemon, name="own"):
    header, payload = latent_request(LATENT, model=name)
    answer, rest = exchange(daemon, header, b"", payload)
    return answer, rest[1] if answer.code == pb.OK else None


def model(daemon, name="own"):
    return next((m for m in daemon.status().models if m.name == name), None)


def cut_short(path):
    """Shorter in place, as a careless copy does it; the mapping of the daemon sees it."""
    os.truncate(path, path.stat().st_size // 2)


def put_back(path, models):
    """The whole file again, by rename."""
    beside = path.with_suffix(".new")
    shutil.copy(models / "vae.safetensors", beside)
    beside.rename(path)


def test_what_clients_registered_outlives_the_core(make_daemon, own):
    daemon = make_daemon()
    register(daemon, "own", own)
    wanted = decode(daemon)[1]
    runtimes = (pathlib.Path("/run/luna"), daemon.folder / "luna")
    stores = [path for path in (runtime / f"private-{daemon.pid}" / "models" for runtime in runtimes) if path.exists()]
    assert len(stores) == 1 and stores[0].stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        daemon.kill_child("core-process")
        answer, image = decode(daemon)
        assert answer.code == pb.OK, answer
        assert image == wanted
    answer, loaded = load(daemon)
    assert answer.code == pb.OK and loaded.loaded_on == ["cpu"], answer


def test_what_clients_registered_outlives_a_new_configuration(make_daemon, own):
    daemon = make_daemon()
    events = daemon.events
    register(daemon, "own", own)
    core = daemon.core_pid
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.core_pid not in (core, None), 20, "a new core")
    assert decode(daemon)[0].code == pb.OK
    assert events is daemon.events


def test_a_registered_file_that_is_gone_when_the_core_restarts_is_a_failed_model(make_daemon, own):
    daemon = make_daemon()
    register(daemon, "own", own)
    own.unlink()
    daemon.kill_child("core-process")
    assert daemon.is_serving()
    wait_until(lambda: model(daemon) and model(daemon).state == "failed", 10, "the model failed")
    assert own.name in model(daemon).message
    assert decode(daemon)[0].code != pb.OK


def test_a_load_holds_every_network_and_an_unload_none(make_daemon):
    daemon = make_daemon()
    answer, loaded = load(daemon, "demo")
    assert answer.code == pb.OK and loaded.state == "loaded" and loaded.loaded_on == ["cpu"], answer
    held = wait_until(lambda: (lambda bytes: bytes >= loaded.bytes and bytes)(daemon.status().devices[0].weights_bytes),
                      10, "the device tells of all weights")
    assert load(daemon, "demo")[0].code == pb.OK
    assert daemon.status().devices[0].weights_bytes == held
    answer, left = unload(daemon, "demo")
    assert answer.code == pb.OK and left.state == "registered" and not left.loaded_on, answer
    wait_until(lambda: daemon.status().devices[0].weights_bytes == 0, 10, "the weights are gone")


def test_a_dead_executor_holds_no_model_until_it_loaded_it_again(make_daemon):
    daemon = make_daemon()
    events = daemon.events
    assert load(daemon, "demo")[0].code == pb.OK
    events.wait_topic("model.loaded", model="demo")
    before = daemon.kill_child("executor-process")
    wait_until(lambda: daemon.executor_pid not in (before, None), 20, "a new executor")
    gone = events.wait_topic("model.unloaded", model="demo")
    assert "demo" in gone.message and "cpu" in gone.message
    wait_until(lambda: not model(daemon, "demo").loaded_on, 10, "nobody holds it")
    assert model(daemon, "demo").state == "registered"
    wait_until(lambda: load(daemon, "demo")[0].code == pb.OK, 20, "loaded again")
    assert model(daemon, "demo").loaded_on == ["cpu"]


def test_a_load_is_answered_when_its_executor_dies_or_its_file_is_bad(make_daemon, own):
    daemon = make_daemon()
    register(daemon, "own", own)
    cut_short(own)
    answer, _ = load(daemon)
    assert answer.code == pb.INVALID_ARGUMENT and own.name in answer.message, answer
    assert daemon.is_serving()


def test_a_file_that_is_cut_short_while_it_is_served(make_daemon, models, own):
    daemon = make_daemon(settings={"scaling.idle_timeout_s": 1})
    register(daemon, "own", own)
    wanted = decode(daemon)[1]
    executor = daemon.executor_pid
    cut_short(own)
    answer, _ = decode(daemon)
    assert answer.code == pb.FAILED_PRECONDITION, answer
    assert own.name in answer.message and str(own.parent) not in answer.message
    assert decode(daemon, "demo")[0].code == pb.OK
    put_back(own, models)
    assert decode(daemon)[0].code == pb.FAILED_PRECONDITION  # it holds the old file still
    wait_until(lambda: unload(daemon)[0].code == pb.OK, 20, "its worker retired")
    answer, _ = load(daemon)
    assert answer.code == pb.OK, answer
    answer, image = decode(daemon)
    assert answer.code == pb.OK and image == wanted
    assert daemon.executor_pid == executor


def test_a_reload_takes_the_file_that_was_put_in_its_place(make_daemon, models, own):
    daemon = make_daemon(extra=f"[model own]\nfiles = own/{own.name}\n")
    wanted = decode(daemon)[1]
    tensors, metadata = read_safetensors((models / "vae.safetensors").read_bytes())
    name = "decoder.conv_out.bias"
    other = own.with_suffix(".new")
    other.write_bytes(pack_safetensors({**tensors, name: tensors[name] + 1}, metadata))
    executor, core = daemon.executor_pid, daemon.core_pid
    cut_short(own)
    assert decode(daemon)[0].code == pb.FAILED_PRECONDITION
    other.rename(own)
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.core_pid not in (core, None), 20, "a new core")

    def is_other():
        answer, image = decode(daemon)
        return answer.code == pb.OK and image != wanted
    wait_until(is_other, 20, "the new file is served")
    assert daemon.executor_pid == executor


def large(models):
    """Two models whose embeddings take 49 MB each; see test_scaling."""
    folder = models / "large"
    folder.mkdir(exist_ok=True)
    tensors, metadata = read_safetensors((models / "clip_l.safetensors").read_bytes())
    table = "text_model.embeddings.token_embedding.weight"
    import numpy as np
    for name in ("third", "fourth"):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            rows = np.random.default_rng(len(name)).standard_normal((400_000, 64)).astype(np.float16)
            path.write_bytes(pack_safetensors({**tensors, table: rows}, metadata))
    return "".join(f"[model {name}]\nfiles = large/{name}.safetensors\n" for name in ("third", "fourth"))


def test_a_load_makes_room_and_never_takes_more_than_the_limit(make_daemon, models):
    daemon = make_daemon(settings={"service.memory_limit_mb": 96, "scaling.memory_margin_mb": 8}, extra=large(models))
    limit = 96 << 20
    for name in ("third", "fourth", "third"):
        answer, loaded = load(daemon, name)
        assert answer.code == pb.OK and loaded.loaded_on == ["cpu"], answer
        assert daemon.status().devices[0].weights_bytes <= limit
    assert not model(daemon, "fourth").loaded_on


def test_a_load_that_does_not_fit_is_refused_with_the_numbers(make_daemon, models):
    daemon = make_daemon(settings={"service.memory_limit_mb": 64, "scaling.memory_margin_mb": 30}, extra=large(models))
    assert load(daemon, "demo")[0].code == pb.OK
    answer, _ = load(daemon, "third")
    assert answer.code == pb.RESOURCE_EXHAUSTED and answer.retry_after_ms > 0, answer
    for word in ("third", "free", "30 MB margin"):
        assert word in answer.message, answer
    assert model(daemon, "demo").loaded_on == ["cpu"], "what could not help was not thrown out"


def test_an_idle_executor_that_stands_still_is_replaced(make_daemon):
    daemon = make_daemon()
    events = daemon.events
    wait_until(lambda: daemon.status().devices, 10, "the device reported")
    stopped = daemon.kill_child("executor-process", signal.SIGSTOP)
    told = events.wait_topic("error", 12, device="cpu")
    assert "has not reported" in told.message
    wait_until(lambda: not is_alive(stopped), 10, "it was killed")
    header, data = text_request(pb.ENCODE_TEXT, "a cat")
    answer, _ = daemon.raw().ask(header, b"", data, seconds=30)
    assert answer.code == pb.OK, answer


def test_every_event_has_a_sentence_for_people(make_daemon):
    daemon = make_daemon(settings={"scaling.idle_timeout_s": 1})
    events = daemon.events
    header, data = text_request(pb.ENCODE_TEXT, "a cat")
    assert daemon.raw().ask(header, b"", data, seconds=30)[0].code == pb.OK
    events.wait_topic("worker.down", 20)
    wait_until(lambda: unload(daemon, "demo")[0].code == pb.OK, 10, "the registry heard it too")
    events.wait_topic("model.unloaded", 20)
    told = {topic: message.message for topic, message in events.seen if topic != "status"}
    assert {"model.loaded", "model.unloaded", "worker.up", "worker.down", "scaling.up", "scaling.down"} <= set(told)
    assert all(told.values()), json.dumps(told, indent=1)
