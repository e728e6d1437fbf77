"""Stacks of adapters on shared weights: the goldens of every family, requests that never see each other's stack,
one-shots, the cache of encodings, and what happens when something is dropped, killed or full meanwhile."""

import concurrent.futures
import json
import pathlib
import threading
import time

import numpy as np
import pytest

import files
import luna
import tiny
from conftest import CONFIG, ROOT, request, wait_until
from luna import luna_pb2 as pb

GOLDEN = ROOT / "tests" / "golden" / "lora"
CASES = json.loads((GOLDEN / "cases.json").read_text())
MODELS = """[model sdxl]
files = clip_l.safetensors, clip_g.safetensors
[model sd1]
files = clip_l.safetensors
[model refiner]
files = clip_g.safetensors
"""
STACKS = [
    [],
    [("kohya_sdxl.safetensors", 1.0)],
    [("diffusers.safetensors", -0.5)],
    [("peft.safetensors", 0.7), ("kohya_sdxl.safetensors", 0.3)],
    [("kohya_sdxl.safetensors", 0.6), ("peft.safetensors", 0.7)],
    [("loha.safetensors", 1.0)],
    [("dora.safetensors", 0.6), ("diffusers.safetensors", 0.5)],
    [("lokr.safetensors", 1.0), ("oft.safetensors", 0.5)],
]


@pytest.fixture(scope="session")
def encoders():
    folder = ROOT / "build" / "tests"
    return {dtype: tiny.write_encoders(folder / f"tiny-{dtype.lower()}", dtype) for dtype in ("F32", "F16")}


@pytest.fixture
def start(make_daemon, encoders):
    """Starts a daemon that has the goldens' encoders and adapters."""
    demo = "[model demo]\nfiles = vae.safetensors, clip_l.safetensors, clip_g.safetensors\n"
    assert demo in CONFIG

    def start(dtype="F32", **settings):
        settings = {key.replace("__", "."): value for key, value in settings.items()}
        config = CONFIG.replace(demo, MODELS) + f"[lora]\ndirectories = {GOLDEN / 'adapters'}\n"
        return make_daemon(models=encoders[dtype], config=config,
                           settings={"models.default_text": "sdxl", **settings})

    return start


def entries(stack):
    """The stack of a golden case, as Python's loras."""
    made = []
    for entry in stack:
        strength = entry["strength"]
        by_part = isinstance(strength, dict)
        made.append({"reference": entry["adapter"], "strength": 1.0 if by_part else strength,
                     **({"strength_l": strength["clip_l"], "strength_g": strength["clip_g"]} if by_part else {})})
    return made


def relative(a, b):
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(np.asarray(b, np.float64))


def encode(client, stack, prompt="a photo of a (red:1.3) fox", **options):
    return client.encode_text(prompt, model="sdxl", loras=stack, **options)


def same(a, b):
    return a.cond.tobytes() == b.cond.tobytes() and a.pooled.tobytes() == b.pooled.tobytes()


def adapter(seed, unet_bytes=0, rank=2):
    """A small adapter of SDXL's encoders that nobody else has."""
    random = np.random.default_rng(seed)
    tensors = {}
    for prefix, width in (("lora_te1", 64), ("lora_te2", 128)):
        stem = f"{prefix}_text_model_encoder_layers_0_self_attn_q_proj"
        tensors[f"{stem}.lora_down.weight"] = random.standard_normal((rank, width)).astype(np.float32)
        tensors[f"{stem}.lora_up.weight"] = random.standard_normal((width, rank)).astype(np.float32)
    if unet_bytes:
        tensors["lora_unet_x.lora_down.weight"] = random.standard_normal((1, unet_bytes // 4)).astype(np.float32)
    return tensors


# ---- what stacks compute


@pytest.mark.parametrize("execution", ["functional", "merged"])
def test_every_family_computes_what_the_goldens_say(start, execution):
    want, metadata = files.read_safetensors((GOLDEN / "cases.safetensors").read_bytes())
    client = start(lora__execution=execution).connect()
    for case in (case for case in CASES if case["dtype"] == "F32"):
        result = client.encode_text(case["prompt"], model=case["kind"], loras=entries(case["stack"]))
        cond = result.cond[:, :: int(metadata["stride"])]
        assert relative(cond, want[case["name"] + ".cond"]) <= 2e-4, case["name"]
        assert relative(result.pooled, want[case["name"] + ".pooled"]) <= 2e-4, case["name"]
        assert len(result.loras) == len(case["stack"])
        if execution == "merged" and any(use["modules"] for use in result.loras):
            assert result.loras_merged


def test_merged_on_half_precision_is_rounded_once(start):
    """Functional execution adds what the rounding of a merged weight would lose: about 1e-3."""
    want, metadata = files.read_safetensors((GOLDEN / "cases.safetensors").read_bytes())
    client = start("F16", lora__execution="merged").connect()
    beside = start("F16").connect()
    cases = [case for case in CASES if case["dtype"] == "F16"]
    assert cases
    for case in cases:
        stack = entries(case["stack"])
        merged = client.encode_text(case["prompt"], model=case["kind"], loras=stack)
        cond = merged.cond[:, :: int(metadata["stride"])]
        assert relative(cond, want[case["name"] + ".cond"]) <= 2e-4, case["name"]
        assert relative(merged.pooled, want[case["name"] + ".pooled"]) <= 2e-4, case["name"]
        functional = beside.encode_text(case["prompt"], model=case["kind"], loras=stack)
        assert relative(functional.cond, merged.cond) <= 5e-3, case["name"]


def test_what_each_entry_did_is_in_the_answer(start):
    facts = json.loads((GOLDEN / "adapters.json").read_text())
    client = start().connect()
    for name, fact in facts.items():
        if not name.endswith(".safetensors") or name.split(".")[0] in ("kohya_sd1", "refiner"):
            continue
        result = encode(client, [{"reference": name, "strength": 1.0}, {"reference": name, "disabled": True}])
        use, nothing = result.loras
        assert (use["modules"], use["keys_unused"], use["keys_other"]) == \
            (len(fact["modules"]), len(fact["unused"]), fact["other"]), name
        assert len(use["encoder_hash"]) == 64 and nothing["modules"] == 0
        assert bool(fact["unused"]) == any("no encoder uses" in note for note in result.notes)


@pytest.mark.parametrize("name", ["kohya_sdxl.safetensors", "dora.safetensors"])
def test_all_factors_of_an_entry_and_of_its_stack_are_one_product(start, name):
    """Powers of two, so that the order of multiplication is no matter."""
    daemon = start()
    client = daemon.connect()
    want = encode(client, [(name, 0.75)], prompt="a fox")
    header = request(pb.ENCODE_TEXT, [("prompt", pb.U8, (5,), 5)], model="sdxl")
    body = pb.EncodeText(lora_multiplier=0.25, lora_scaling=-2.0)
    body.loras.add(reference="nobody", strength=1.0, disabled=True)
    body.loras.add(reference=name, strength=9.0, strength_l=3.0, strength_g=3.0, scaling=-0.5)
    answer, rest = daemon.raw().ask(header, body, b"a fox")
    assert answer.code == pb.OK, answer.message
    assert rest[1] == want.cond.tobytes() and rest[2] == want.pooled.tobytes()


def test_an_unknown_name_is_an_error_that_names_it(start):
    client = start().connect()
    with pytest.raises(luna.NotFound, match="nobody"):
        encode(client, [("kohya_sdxl", 1.0), ("nobody", 1.0)])
    assert encode(client, [{"reference": "nobody", "disabled": True}]).loras[0]["modules"] == 0


def test_a_stack_that_is_too_large_to_merge_names_both_numbers(start):
    client = start(lora__merged_limit_mb=0).connect()
    with pytest.raises(luna.ResourceExhausted, match=r"\d+ bytes, lora.merged_limit_mb allows 0"):
        encode(client, [("loha.safetensors", 1.0)])
    assert encode(client, [("kohya_sdxl.safetensors", 1.0)]).loras[0]["modules"] == 12


# ---- many at once


def check_isolation(daemon, stacks, requests, clients=8):
    """Every answer has the bytes of its solo run, whatever runs beside it."""
    with luna.connect(daemon.ipc) as client:
        prompts = [f"a photo of fox number {i}" for i in range(4)]
        solo = {(i, prompt): encode(client, stack, prompt) for i, stack in enumerate(stacks) for prompt in prompts}
    for (i, prompt), result in solo.items():
        others = [other for (j, text), other in solo.items() if text == prompt and j != i]
        assert not any(same(result, other) for other in others)

    def run(number):
        with luna.connect(daemon.ipc) as client:
            wrong = 0
            for count in range(requests // clients):
                which = (number + count) % len(stacks) if count % 3 else number % len(stacks)
                prompt = prompts[(number + count) % len(prompts)]
                wrong += not same(encode(client, stacks[which], prompt), solo[which, prompt])
            return wrong

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        assert sum(pool.map(run, range(clients))) == 0


def test_requests_with_eight_stacks_at_once_never_see_each_other(start):
    check_isolation(start(), STACKS, 160)


@pytest.mark.slow
def test_a_thousand_requests_with_eight_stacks_never_see_each_other(start):
    check_isolation(start(), STACKS, 1000)
    check_isolation(start(lora__execution="merged"), STACKS, 1000)


def test_merged_copies_take_turns_where_only_some_fit(start):
    # One copy of one touched layer is some 200 KB, so 1 MB holds a few of these.
    stacks = [[("loha.safetensors", strength)] for strength in (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)]
    daemon = start(lora__merged_limit_mb=1)
    check_isolation(daemon, stacks, 160)
    with luna.connect(daemon.ipc) as client:
        stats = wait_until(lambda: client.lora_stats()["merged_entries"] and client.lora_stats(), 5, "it is told")
        assert 0 < stats["merged_bytes"] <= 1 << 20


# ---- one-shots


@pytest.mark.parametrize("size", [0, 1 << 20], ids=["frames", "shared memory"])
def test_a_one_shot_computes_what_the_same_adapter_does_by_name(start, size):
    daemon = start()
    client = daemon.connect()
    tensors = adapter(5, unet_bytes=size)
    once = encode(client, [(tensors, 0.8)], one_shot=True)
    assert client.lora_stats()["one_shots"] == 1 and client.lora_stats()["uploads"] == 0
    if size:
        assert daemon.status().transport.shared_bytes > size
    client.put_lora(tensors, "mine")
    named = encode(client, [("mine", 0.8)])
    assert same(once, named) and not same(once, encode(client, []))
    assert once.loras[0]["encoder_hash"] == named.loras[0]["encoder_hash"]
    wait_until(lambda: daemon.status().transport.leases == 0, 5, "every lease comes back")


def test_a_one_shot_that_is_no_adapter_is_refused(start):
    client = start().connect()
    data = b"\x10\0\0\0\0\0\0\0{not a header   "
    header = request(pb.ENCODE_TEXT, [("prompt", pb.U8, (1,), 1), ("lora.0", pb.U8, (len(data),), len(data))],
                     model="sdxl")
    body = pb.EncodeText(loras=[pb.LoraEntry(reference="mine", strength=1.0, tensor="lora.0")])
    answer, _ = raw(client).ask(header, body.SerializeToString(), b"x", data)
    assert answer.code == pb.INVALID_ARGUMENT and "mine" in answer.message


def raw(client):
    from conftest import Raw

    return Raw(client.endpoint)


def resident_bytes(pid):
    status = (pathlib.Path(f"/proc/{pid}") / "status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))


def check_memory_stays(daemon, warm, total):
    """Returns what core and executor hold at the end, by what they held after the first `warm`."""
    client = daemon.connect()
    pids = (daemon.core_pid, daemon.executor_pid)
    for _ in range(100):  # the router keeps its last 1,024 answers for those who ask again
        encode(client, [])
    before = None
    for i in range(total):
        if i == warm:
            before = sum(resident_bytes(pid) for pid in pids)
        encode(client, [(adapter(i), 0.5)], one_shot=True)
    after = sum(resident_bytes(pid) for pid in pids)
    stats = client.lora_stats()
    assert stats["one_shots"] == total and stats["uploads"] == 0
    return after / before


def test_a_hundred_one_shots_leave_nothing_in_the_books(start):
    daemon = start()
    check_memory_stays(daemon, 10, 100)
    with luna.connect(daemon.ipc) as client:
        wait_until(lambda: client.lora_stats()["adapter_bytes"] == 0, 5, "no adapter is left on the device")
        assert client.lora_stats()["merged_entries"] == 0


@pytest.mark.slow
@pytest.mark.release
def test_ten_thousand_one_shots_leave_the_memory_as_it_was(start):
    assert 0.99 <= check_memory_stays(start(), 1000, 10000) <= 1.01


# ---- the cache of encodings


def test_an_answer_that_is_known_has_the_same_bytes_and_needs_no_executor(start):
    daemon = start(cache__conditioning_mb=64)
    client = daemon.connect()
    stack = [("kohya_sdxl.safetensors", 0.8), ("loha.safetensors", 0.5)]
    for loras in ([], stack):
        first = encode(client, loras, negative="blurry")
        again = encode(client, loras, negative="blurry")
        assert (first.cached, again.cached) == (False, True)
        assert same(first, again) and first.negative_cond.tobytes() == again.negative_cond.tobytes()
        assert again.loras == first.loras and again.loras_merged == first.loras_merged
        assert again.notes == first.notes and again.rows == first.rows and again.execute_ms == 0
    stats = client.lora_stats()
    assert (stats["conditioning_hits"], stats["conditioning_misses"], stats["conditioning_entries"]) == (2, 2, 2)
    assert stats["conditioning_limit_bytes"] == 64 << 20 and stats["conditioning_bytes"] > 0


@pytest.mark.parametrize("change", [
    dict(prompt="a photo of a (red:1.3) fox "), dict(negative=""), dict(clip_skip=1), dict(weights=False),
    dict(dtype="f16"), dict(stack=[("kohya_sdxl.safetensors", 0.81)]), dict(stack=[]),
    dict(stack=[("kohya_sdxl.safetensors", 0.8)] * 2), dict(lora_multiplier=0.5),
])
def test_another_question_is_another_answer(start, change):
    client = start(cache__conditioning_mb=64).connect()
    question = dict(stack=[("kohya_sdxl.safetensors", 0.8)])
    assert not encode(client, **question).cached
    assert not encode(client, **{**question, **change}).cached
    assert encode(client, **question).cached


def test_texts_with_embeddings_are_encoded_each_time(start):
    client = start(cache__conditioning_mb=64).connect()
    for _ in range(2):
        assert not encode(client, [], "a photo, embedding:nobody").cached


def test_a_known_answer_comes_in_frames_whatever_room_is_offered(start):
    client = start(cache__conditioning_mb=64).connect()
    prompt = " ".join(f"fox number {i}" for i in range(2000))  # over 256 KiB of conditioning
    first = encode(client, [], prompt)
    assert first.cond.nbytes > 1 << 18
    again = encode(client, [], prompt)
    assert again.cached and same(first, again)


def test_a_model_that_was_unloaded_takes_its_answers_along(start):
    daemon = start(cache__conditioning_mb=64, scaling__idle_timeout_s=1)
    client = daemon.connect()
    first = encode(client, [])
    assert encode(client, []).cached

    def unload():
        try:
            return client.unload_model("sdxl")
        except luna.FailedPrecondition:  # its worker has not retired yet
            return None

    wait_until(unload, 20, "the model is unloaded")
    again = encode(client, [])
    assert not again.cached and same(first, again)


def test_the_same_id_again_is_answered_from_wherever_it_is_known(start):
    daemon = start(cache__conditioning_mb=64)
    client = daemon.raw()
    header = request(pb.ENCODE_TEXT, [("prompt", pb.U8, (5,), 5)], model="sdxl")
    warm = request(pb.ENCODE_TEXT, [("prompt", pb.U8, (5,), 5)], model="sdxl")
    client.ask(warm, b"", b"a fox")
    answers = [client.ask(header, b"", b"a fox") for _ in range(2)]
    assert all(answer.code == pb.OK and answer.id == header.id for answer, _ in answers)
    assert [pb.TextReply.FromString(rest[0]).cached for _, rest in answers] == [True, True]
    answer, _ = client.ask(header, b"", b"a cat")
    assert answer.code == pb.INVALID_ARGUMENT  # the id was another request's


# ---- trouble


def busy(daemon, seconds, work, clients=4):
    """Runs work(client, number) over and over from several clients; returns what they said."""
    until = time.monotonic() + seconds
    said = []

    def run(number):
        with luna.connect(daemon.ipc, timeout=60) as client:
            while time.monotonic() < until:
                said.append(work(client, number))

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(run, range(clients)))
    return said


def test_what_is_evicted_while_it_is_used_is_used_to_the_end(start):
    daemon = start()
    tensors = adapter(9)
    with luna.connect(daemon.ipc) as client:
        want = encode(client, [(tensors, 0.8)], one_shot=True)

    def work(client, number):
        if number == 0:
            client.put_lora(tensors, "mine")
            client.evict_lora("mine")
            return None
        try:
            return same(encode(client, [("mine", 0.8)]), want)
        except luna.NotFound as error:
            assert "mine" in str(error)
            return None

    said = busy(daemon, 2, work)
    assert False not in said and True in said


@pytest.mark.parametrize("who", ["executor-process", "core-process"])
def test_a_process_that_dies_while_stacks_load_costs_time_and_no_answer(start, who):
    daemon = start()
    with luna.connect(daemon.ipc) as client:
        solo = [encode(client, stack) for stack in STACKS]
    stop, answers = threading.Event(), []

    def run(number):
        right = []
        with luna.connect(daemon.ipc, timeout=60) as client:
            while not stop.is_set():
                which = (number + len(right)) % len(STACKS)
                right.append(same(encode(client, STACKS[which]), solo[which]))
                nothing = [(adapter(1000 * number + len(right)), 1e-30)]  # adds nothing, but has to be there
                once = encode(client, nothing, one_shot=True)
                right.append(relative(once.cond, solo[0].cond) < 1e-6)
                answers.append(number)
        return right

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        running = [pool.submit(run, number) for number in range(3)]
        try:
            for _ in range(3):
                wait_until(lambda least=len(answers) + 6: len(answers) >= least, 20, "it works")
                daemon.kill_child(who)
                wait_until(daemon.is_serving, 20, "it serves again")
        finally:
            stop.set()
        said = [answer for future in running for answer in future.result()]
    assert len(said) >= 6 and all(said)
