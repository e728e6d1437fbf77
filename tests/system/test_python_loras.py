"""Adapters through the Python package and the real daemon: the numbers, uploads, names, statistics, cache."""

import asyncio
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading

import numpy as np
import pytest

import luna
import luna.aio
from adapters import make_loha, make_lora, relative, targets, write, write_changed
from conftest import Daemon
from files import ROOT, pack_safetensors

PROMPT = "a (red:1.2) fox in the snow"
BAR = 2e-4  # relative, on hidden states and pooled

CONFIG = """
[lora]
directories = {loras}
[cache]
conditioning_mb = 0
[model l]
files = clip_l.safetensors
[model lora_l]
files = lora_l.safetensors
[model two_l]
files = two_l.safetensors
[model loha]
files = loha_l.safetensors, loha_g.safetensors
[model lora]
files = lora_l32.safetensors, lora_g32.safetensors
"""


@pytest.fixture(scope="module")
def adapters():
    """{name: state dict}: for the demo's model, and for its L alone."""
    both, alone = targets("lg"), targets("l")
    return {"ink": make_lora(targets=both), "grain": make_loha(targets=both),
            "ink_l": make_lora(targets=alone), "other_l": make_lora(seed=11, rank=8, targets=alone)}


@pytest.fixture(scope="module")
def running(models, adapters):
    """A daemon with the demo's model, models that were changed beforehand, and a folder of adapters."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="luna-s-"))
    mine = folder / "models"
    shutil.copytree(models, mine)
    clip = {letter: mine / f"clip_{letter}.safetensors" for letter in "lg"}
    ink, other = adapters["ink_l"], adapters["other_l"]
    write_changed(mine / "lora_l.safetensors", clip["l"], "l", [(ink, 0.8)], targets("l"))
    write_changed(mine / "two_l.safetensors", clip["l"], "l", [(ink, 0.8), (other, -0.5)], targets("l"))
    for letter in "lg":
        write_changed(mine / f"loha_{letter}.safetensors", clip[letter], letter, [(adapters["grain"], 0.7)],
                      targets("lg"), "<f2")
        write_changed(mine / f"lora_{letter}32.safetensors", clip[letter], letter, [(adapters["ink"], 0.8)],
                      targets("lg"))
    write(folder / "loras" / "ink.safetensors", adapters["ink"])
    write(folder / "loras" / "sub" / "ink_l.safetensors", adapters["ink_l"])
    daemon = Daemon(folder, mine, extra=CONFIG.format(loras=folder / "loras")).wait_ready()
    yield daemon
    try:
        daemon.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def daemon(running):
    client = luna.connect(running.ipc, connect_timeout=20)
    yield client
    client.close()


def entry_of(daemon, **fields):
    """The one listed adapter with these fields."""
    return next(e for e in daemon.loras() if all(e[key] == value for key, value in fields.items()))


# ---- the numbers


def test_a_lora_beside_the_weights_is_as_if_it_were_in_them(daemon):
    result = daemon.encode_text(PROMPT, model="l", loras=[("ink_l", 0.8)])
    expected = daemon.encode_text(PROMPT, model="lora_l")
    plain = daemon.encode_text(PROMPT, model="l")
    assert relative(result.cond, expected.cond) <= BAR and relative(result.pooled, expected.pooled) <= BAR
    assert relative(result.cond, plain.cond) > 0.01  # or it would prove nothing
    assert not result.loras_merged and result.loras[0]["modules"] == 12


def test_two_loras_add_up(daemon, adapters):
    name = daemon.put_lora(adapters["other_l"], "other_l")
    result = daemon.encode_text(PROMPT, model="l", loras=[("ink_l", 0.8), (name, -0.5)])
    expected = daemon.encode_text(PROMPT, model="two_l")
    assert relative(result.cond, expected.cond) <= BAR and relative(result.pooled, expected.pooled) <= BAR
    halves = daemon.encode_text(PROMPT, model="l", loras=[("ink_l", 1.6), (name, -1.0)], lora_multiplier=0.5)
    assert relative(halves.cond, expected.cond) <= BAR


def test_both_encoders_of_a_model_are_changed(daemon):
    result = daemon.encode_text(PROMPT, model="demo", negative="blurry", loras=[("ink", 0.8)])
    expected = daemon.encode_text(PROMPT, model="lora", negative="blurry")
    for name in ("cond", "pooled", "negative_cond", "negative_pooled"):
        assert relative(getattr(result, name), getattr(expected, name)) <= BAR, name
    use = result.loras[0]
    assert (use["modules"], use["keys_unused"]) == (12 + 18, 0) and use["keys_other"] == 2
    only_l = daemon.encode_text(PROMPT, model="demo", loras=[{"reference": "ink", "strength_g": 0.0}])
    plain = daemon.encode_text(PROMPT, model="demo")
    np.testing.assert_array_equal(only_l.pooled, plain.pooled)  # bigG's
    assert relative(only_l.cond, plain.cond) > 0.001


def test_a_family_that_is_merged_has_the_weights_of_a_merged_file(daemon, adapters):
    result = daemon.encode_text(PROMPT, model="demo", loras=[(adapters["grain"], 0.7)])
    expected = daemon.encode_text(PROMPT, model="loha")
    assert result.loras_merged and result.loras[0]["modules"] == 12 + 18
    assert relative(result.cond, expected.cond) <= BAR and relative(result.pooled, expected.pooled) <= BAR


def test_strength_zero_and_disabled_change_nothing(daemon):
    plain = daemon.encode_text(PROMPT, model="demo")
    for stack in ([("ink", 0.0)], [{"reference": "ink", "disabled": True}],
                  [{"reference": "nobody knows it", "disabled": True}]):
        result = daemon.encode_text(PROMPT, model="demo", loras=stack)
        np.testing.assert_array_equal(result.cond, plain.cond)
        np.testing.assert_array_equal(result.pooled, plain.pooled)
        assert result.loras[0]["modules"] == 0


def test_stacks_never_leak_into_each_other(running, adapters):
    stacks = [(), [("ink", 0.8)], [(adapters["grain"], 0.7)], [("ink", -0.5), (adapters["grain"], 0.3)]]

    def encode(client, i):
        return client.encode_text(PROMPT, model="demo", loras=stacks[i]).cond.tobytes()

    with luna.connect(running.ipc) as client:
        alone = [encode(client, i) for i in range(len(stacks))]
    assert len(set(alone)) == len(stacks)
    wrong = []

    def work(first):
        with luna.connect(running.ipc) as client:
            for round_ in range(10):
                i = (first + round_) % len(stacks)
                if encode(client, i) != alone[i]:
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- names, uploads, files


def test_names_resolve_below_the_folders(daemon):
    assert daemon.lora("ink")["hash"] == daemon.lora("ink.safetensors")["hash"]
    assert daemon.lora("ink_l")["path"] == daemon.lora("sub/ink_l.safetensors")["path"]
    with pytest.raises(luna.NotFound, match="nothing"):
        daemon.encode_text(PROMPT, model="demo", loras=["nothing"])
    with pytest.raises(luna.InvalidArgument):
        daemon.encode_text(PROMPT, model="demo", loras=["../ink"])


def test_a_state_dict_is_put_once_and_known_by_its_hash(daemon, adapters):
    tensors = make_lora(seed=21, targets=targets("lg"))
    before = daemon.status()["transport"]
    reference = daemon.put_lora(tensors, "fresh")
    assert reference == "fresh"
    moved = daemon.status()["transport"]
    assert moved["shared_bytes"] + moved["frame_bytes"] > before["shared_bytes"] + before["frame_bytes"]
    daemon.put_lora(tensors, "fresh")
    again = daemon.status()["transport"]
    assert again == moved
    entry = entry_of(daemon, name="fresh")
    assert entry["uploaded"] and entry["encoders"] == ["l", "g"] and entry["rank"] == 4
    assert entry["family"] == "lora" and entry["format"] == "safetensors"
    assert daemon.lora(entry["hash"])["name"] == "fresh"
    assert len(entry["encoder_hash"]) == 64 and entry["encoder_hash"] != entry["hash"]


def test_what_was_put_comes_back(running, daemon, tmp_path):
    tensors = make_lora(seed=22, rank=96, targets=targets("lg"))  # larger than what shared memory is for
    data = pack_safetensors(tensors)
    path = tmp_path / "large.safetensors"
    path.write_bytes(data)
    reference = daemon.put_lora(path)
    def in_frames():
        return running.status().transport.frame_bytes

    before = in_frames()
    assert daemon.get_lora(reference) == data  # handed over as a descriptor
    assert daemon.get_lora(reference, tmp_path / "back").read_bytes() == data
    assert running.cli("loras", "get", reference, "-o", tmp_path / "shell").returncode == 0
    assert (tmp_path / "shell").read_bytes() == data
    assert in_frames() == before
    with luna.connect(running.tcp) as remote:  # no memory is shared: it comes in pieces
        assert remote.get_lora(reference) == data
    assert set(luna.state_dict(daemon.get_lora("ink"))) == set(make_lora(targets=targets("lg")))


def test_what_the_daemon_lacks_is_uploaded_within_the_call(daemon, tmp_path):
    path = write(tmp_path / "new.safetensors", make_lora(seed=23, targets=targets("lg")))
    first = daemon.encode_text(PROMPT, model="demo", loras=[(path, 0.5)])
    second = daemon.encode_text(PROMPT, model="demo", loras=[(path, 0.5)])
    np.testing.assert_array_equal(first.cond, second.cond)
    assert first.loras[0]["modules"] == 30


def test_a_one_shot_leaves_nothing_behind(daemon):
    tensors = make_lora(seed=24, targets=targets("lg"))
    known = len(daemon.loras())
    before = daemon.lora_stats()["one_shots"]
    result = daemon.encode_text(PROMPT, model="demo", loras=[(tensors, 0.8)], one_shot=True)
    assert result.loras[0]["modules"] == 30
    assert len(daemon.loras()) == known
    assert daemon.lora_stats()["one_shots"] == before + 1
    daemon.put_lora(tensors, "now it stays")
    stored = daemon.encode_text(PROMPT, model="demo", loras=[("now it stays", 0.8)])
    np.testing.assert_array_equal(stored.cond, result.cond)


def test_pins_evictions_and_statistics_are_told(daemon):
    daemon.put_lora(make_lora(seed=25, targets=targets("lg")), "pinned")
    assert daemon.pin_lora("pinned")["pinned"]
    before = daemon.lora_stats()
    daemon.encode_text(PROMPT, model="demo", loras=["pinned"])
    after = daemon.lora_stats()
    assert after["hits"] == before["hits"] + 1 and after["pinned"] == before["pinned"] == 1
    assert entry_of(daemon, name="pinned")["uses"] == 1
    assert not daemon.unpin_lora("pinned")["pinned"]
    daemon.evict_lora("pinned")
    with pytest.raises(luna.NotFound):
        daemon.lora("pinned")
    assert daemon.lora_stats()["evictions"] == before["evictions"] + 1


def test_a_scan_finds_what_came(running, daemon):
    write(running.folder / "loras" / "came.safetensors", make_lora(seed=26, targets=targets("lg")))
    daemon.scan_loras()
    assert entry_of(daemon, name="came")["path"] == "came.safetensors"
    assert daemon.encode_text(PROMPT, model="demo", loras=["came"]).loras[0]["modules"] == 30


# ---- bad input


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf")])
def test_strengths_that_are_no_numbers_are_refused(daemon, strength):
    with pytest.raises(luna.InvalidArgument, match="ink"):
        daemon.encode_text(PROMPT, model="demo", loras=[("ink", strength)])


def test_a_stack_that_is_too_long_is_refused(daemon):
    with pytest.raises(luna.InvalidArgument, match="8"):
        daemon.encode_text(PROMPT, model="demo", loras=["ink"] * 9)


def test_shapes_of_another_model_are_named(daemon, tmp_path):
    key = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    wrong = {f"{key}.lora_down.weight": np.zeros((4, 768), "f2"), f"{key}.lora_up.weight": np.zeros((3072, 4), "f2")}
    with pytest.raises(luna.InvalidArgument, match=f"{key}|768"):
        daemon.encode_text(PROMPT, model="demo", loras=[wrong])
    with pytest.raises(luna.InvalidArgument, match="wrong.safetensors"):
        daemon.encode_text(PROMPT, model="demo", loras=[write(tmp_path / "wrong.safetensors", wrong)])


def test_an_adapter_without_a_text_encoder_is_said_and_applied_to_nothing(daemon):
    unet = {key: array for key, array in make_lora(targets=targets("lg")).items() if "unet" in key}
    plain = daemon.encode_text(PROMPT, model="demo")
    result = daemon.encode_text(PROMPT, model="demo", loras=[unet])
    np.testing.assert_array_equal(result.cond, plain.cond)
    assert (result.loras[0]["modules"], result.loras[0]["keys_other"]) == (0, 2)
    assert result.notes


# ---- the cache


def test_a_text_that_was_encoded_before_is_answered_from_the_cache(make_daemon, models, tmp_path, adapters):
    write(tmp_path / "ink.safetensors", adapters["ink"])
    running = make_daemon(settings={"lora.directories": tmp_path, "cache.conditioning_mb": 256})
    client = running.connect()
    first = client.encode_text(PROMPT, model="demo", loras=[("ink", 0.8)])
    again = client.encode_text(PROMPT, model="demo", loras=[("ink", 0.8)])
    other = client.encode_text(PROMPT, model="demo", loras=[("ink", 0.7)])
    assert (first.cached, again.cached, other.cached) == (False, True, False)
    np.testing.assert_array_equal(first.cond, again.cond)
    np.testing.assert_array_equal(first.pooled, again.pooled)
    assert again.loras == first.loras
    assert relative(other.cond, first.cond) > 0
    stats = client.lora_stats()
    assert (stats["conditioning_hits"], stats["conditioning_entries"]) == (1, 2)


# ---- the other clients


def test_asyncio_encodes_many_stacks_at_once(running, adapters):
    async def run():
        async with await luna.aio.connect(running.ipc) as client:
            stacks = [[("ink", i / 4), (adapters["grain"], 0.3)] for i in range(6)]
            results = await asyncio.gather(
                *(client.encode_text(PROMPT, model="demo", loras=stack) for stack in stacks))
            again = [await client.encode_text(PROMPT, model="demo", loras=stack) for stack in stacks]
            return [result.cond.tobytes() for result in results], [result.cond.tobytes() for result in again]

    together, alone = asyncio.run(run())
    assert together == alone and len(set(alone)) == 6


def test_the_example_without_the_package_works(running, adapters, tmp_path):
    path = write(tmp_path / "x.safetensors", adapters["ink"])
    folder = ROOT / "clients" / "python"
    environment = {**running.environment, "PYTHONPATH": str(folder / "luna")}
    script = folder / "examples" / "raw_lora.py"
    done = subprocess.run([sys.executable, script, PROMPT, path, "0.5"], env=environment, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 1 and "model" in done.stderr  # more than one offers texts here, and it names none
    environment["LUNA_MODEL"] = "demo"
    done = subprocess.run([sys.executable, script, PROMPT, path, "0.5"], env=environment, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["cond [1, 77, 192] F32", "pooled [1, 128] F32", "changed 30 tensors"]
