"""Adapters that are wrong, by every way in which one comes: a file of the directories, an upload, a one-shot. Each is
refused by name (or said to change nothing), and leaves the daemon as it was: answers, entries, descriptors, memory."""

import os
import pathlib
import resource
import time

import numpy as np
import pytest

from conftest import request, text_request, wait_until
from files import ROOT, pack_safetensors
from luna import luna_pb2 as pb
from test_loras import Client, adapter, stack_request, start, stop

EVIL = sorted((ROOT / "tests" / "golden" / "files").glob("evil_*.pt"))
STEM = "lora_te1_text_model_encoder_layers_0_mlp_fc1"  # [256, 64] in the demo's model
PEFT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


def floats(*shape):
    return np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape).astype(np.float32)


def pair(rank=4, rows=256, columns=64, stem=STEM, **beside):
    return pack_safetensors({f"{stem}.lora_down.weight": floats(rank, columns),
                             f"{stem}.lora_up.weight": floats(rows, rank),
                             **{f"{stem}.{key}": value for key, value in beside.items()}})


# What the message says, beside the adapter's name.
REFUSED = {
    "half": (pack_safetensors({f"{STEM}.lora_up.weight": floats(256, 4)}),
             [f'"{STEM}.lora_up.weight" is there', f'"{STEM}.lora_down.weight" is missing']),
    "other_half": (pack_safetensors({f"{STEM}.lora_down.weight": floats(4, 64)}),
                   [f'"{STEM}.lora_up.weight" is missing']),
    "a_without_b": (pack_safetensors({f"{PEFT}.lora_A.weight": floats(4, 64)}),
                    [f'"{PEFT}.lora_B.weight" is missing']),
    "half_of_loha": (pack_safetensors({f"{STEM}.hada_w1_a": floats(256, 4), f"{STEM}.hada_w1_b": floats(4, 64)}),
                     [f'"{STEM}.hada_w2_a" is missing']),
    "rank_0": (pair(rank=0), [f"{STEM}.lora_down.weight", "[0, 64]"]),
    "rank_over_the_layer": (pair(rank=65), [f"{STEM}.lora_down.weight", "65", "[256, 64]"]),
    "of_a_larger_model": (pair(rows=3072, columns=768), [f"{STEM}.lora_down.weight", "[4, 768]", "[256, 64]"]),
    "of_another_rank_up": (pack_safetensors({f"{STEM}.lora_down.weight": floats(4, 64),
                                             f"{STEM}.lora_up.weight": floats(256, 8)}),
                           [f"{STEM}.lora_up.weight", "[256, 8]", "[256, 4]"]),
    "alpha_nan": (pair(alpha=np.float32("nan")), [f"{STEM}.alpha", "nan"]),
    "alpha_inf": (pair(alpha=np.float32("inf")), [f"{STEM}.alpha", "inf"]),
    "alpha_of_two": (pair(alpha=floats(2)), [f"{STEM}.alpha", "[2]"]),
    "integers": (pack_safetensors({f"{STEM}.lora_down.weight": np.ones((4, 64), np.int32),
                                   f"{STEM}.lora_up.weight": floats(256, 4)}),
                 [f"{STEM}.lora_down.weight", "I32"]),
    "empty": (b"", []),
    "no_tensors": (pack_safetensors({}), ["no tensors"]),
    "a_model": (pack_safetensors({"text_model.final_layer_norm.weight": floats(64)}),
                ["text_model.final_layer_norm.weight"]),
    "cut": (pair()[:-1], []),
    **{path.stem: (path.read_bytes(), []) for path in EVIL},
}

# How many keys are another's, and what the note says.
NOTHING_TO_DO = {
    "unet_only": ({"lora_unet_down_blocks_0_attn.lora_down.weight": floats(4, 8),
                   "lora_unet_down_blocks_0_attn.lora_up.weight": floats(8, 4)}, 2, "no text-encoder tensors"),
    "flux": ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": floats(4, 3072),
              "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": floats(3072, 4),
              "transformer.single_transformer_blocks.3.attn.to_q.lora_A.weight": floats(4, 3072),
              "transformer.single_transformer_blocks.3.attn.to_q.lora_B.weight": floats(3072, 4),
              "lora_te3_encoder_block_0_layer_0_SelfAttention_k.lora_down.weight": floats(4, 4096),
              "lora_te3_encoder_block_0_layer_0_SelfAttention_k.lora_up.weight": floats(4096, 4)},
             6, "no text-encoder tensors"),
    "alpha_0": ({f"{STEM}.lora_down.weight": floats(4, 64), f"{STEM}.lora_up.weight": floats(256, 4),
                 f"{STEM}.alpha": np.float32(0)}, 0, "alpha is 0"),
    "another_encoder": ({"text_encoders.clip_h.transformer.text_model.final_layer_norm.w_norm": floats(1024)},
                        0, "no encoder uses"),
}


class Bench(Client):
    """A daemon with one client, which knows how it was in the beginning."""

    def __init__(self, daemon):
        super().__init__(daemon)
        self.daemon = daemon
        self.loras = daemon.loras
        done = daemon.cli("text", "a cat", "-o", daemon.folder / "x.safetensors")  # takes shared memory, which stays
        assert done.returncode == 0, done.stderr
        self.plain = self.bytes_of([])
        self.core, self.executor = daemon.core_pid, daemon.executor_pid
        self.before = self.state()

    def bytes_of(self, loras, one_shots=(), **fields):
        """(TextReply, payloads) of a prompt that has to be encoded."""
        answer, rest = self.raw.ask(*stack_request(loras, one_shots, **fields), seconds=60)
        assert answer.code == pb.OK, answer.message
        return pb.TextReply.FromString(rest[0]), rest[1:]

    def state(self):
        stats = self.stats()
        told = {key: getattr(stats, key) for key in ("uploads", "pinned", "merged_entries", "merged_bytes",
                                                     "adapter_bytes")}
        told.update(entries=stats.totals.entries, bytes=stats.totals.bytes)
        for who, pid in (("core", self.core), ("executor", self.executor)):
            told[who] = (pid, len(os.listdir(f"/proc/{pid}/fd")))
        return told

    def evict_all(self):
        for reference in {lora.hash for lora in self.list() if lora.resident or lora.uploaded}:
            self.name(pb.LORA_EVICT, reference)

    def is_as_before(self):
        """Lets go of all entries; then everything has to be as in the beginning."""
        self.evict_all()
        seen = []
        try:
            wait_until(lambda: seen.append(self.state()) or seen[-1] == self.before, 10, "it is as it was")
        except AssertionError:
            assert seen[-1] == self.before
        assert (self.daemon.core_pid, self.daemon.executor_pid) == (self.core, self.executor)
        assert self.bytes_of([])[1] == self.plain[1]

    def resident_bytes(self):
        total = 0
        for pid in (self.core, self.executor):
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            total += next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))
        return total

    def write(self, name, data):
        path = self.loras / f"{name}.safetensors"
        part = path.with_suffix(".part")
        part.write_bytes(data)
        part.rename(path)
        return path

    def refuse(self, entry, one_shots=(), codes=(pb.INVALID_ARGUMENT,)):
        """The message by which a stack of this entry is refused."""
        answer, rest = self.raw.ask(*stack_request([entry], one_shots), seconds=60)
        assert answer.code in codes, (pb.Code.Name(answer.code), answer.message)
        assert len(rest) < 2  # no tensor came with it
        return answer.message


@pytest.fixture(scope="module")
def bench(models):
    daemon = start(models, daemon={"scaling.idle_timeout_s": 3600})
    yield Bench(daemon)
    stop(daemon)


def refuse_by_every_way(bench, kind, data, words):
    codes = (pb.INVALID_ARGUMENT, pb.RESOURCE_EXHAUSTED) if kind.startswith("evil") else (pb.INVALID_ARGUMENT,)
    path = bench.write(f"bad-{kind}", data)
    said = [bench.refuse({"reference": f"bad-{kind}", "strength": 1}, codes=codes)]
    path.unlink()
    header = request(pb.LORA_PUT, [("file", pb.U8, [len(data)], len(data))])
    answer, _ = bench.raw.ask(header, pb.LoraPut(name=f"bad-{kind}-put"), data, seconds=60)
    if answer.code == pb.OK:  # the store knows no model, so that an executor has to see it
        said.append(bench.refuse({"reference": f"bad-{kind}-put", "strength": 1}))
    else:
        assert answer.code in codes, answer.message
        said.append(answer.message)
    said.append(bench.refuse({"reference": f"bad-{kind}-once", "tensor": "lora.0", "strength": 1},
                             {"lora.0": data}, codes))
    for message in said:
        # A tensor without bytes is refused before anybody looks at its name.
        assert all(word in message for word in words) and (not data or f"bad-{kind}" in message), message


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_with_an_adapter_is_said_by_key_and_value(bench, kind):
    refuse_by_every_way(bench, kind, *REFUSED[kind])
    bench.is_as_before()


@pytest.mark.parametrize("kind", NOTHING_TO_DO)
def test_an_adapter_that_changes_nothing_here_says_so(bench, kind):
    tensors, others, note = NOTHING_TO_DO[kind]
    data = pack_safetensors(tensors)
    path = bench.write(kind, data)
    bench.put(data, name=f"{kind}-put")
    for entry, one_shots in (({"reference": kind}, {}), ({"reference": f"{kind}-put"}, {}),
                             ({"reference": f"{kind}-once", "tensor": "lora.0"}, {"lora.0": data})):
        reply, payloads = bench.bytes_of([{"strength": 1, **entry}], one_shots)
        assert payloads == bench.plain[1]
        assert (reply.loras[0].modules, reply.loras[0].keys_other) == (0, others)
        assert any(note in line and entry["reference"] in line for line in reply.notes), reply.notes
    path.unlink()
    bench.is_as_before()


def test_one_that_is_wrong_spoils_the_whole_stack_and_names_itself(bench):
    bench.put(pair(), name="good")
    bench.put(REFUSED["alpha_nan"][0], name="bad")
    for stack in (["good", "bad"], ["bad", "good"], ["good", "nobody"]):
        code = pb.NOT_FOUND if "nobody" in stack else pb.INVALID_ARGUMENT
        message = bench.encode([{"reference": name, "strength": 1} for name in stack], code)
        assert f'LoRA "{"nobody" if "nobody" in stack else "bad"}"' in message, message
    assert bench.bytes_of([{"reference": "good", "strength": 1}])[1] != bench.plain[1]
    bench.is_as_before()


def test_what_is_missing_is_a_model_or_a_lora_by_the_first_word(bench):
    header, data = text_request(pb.ENCODE_TEXT, "a cat", model="nobody")
    answer, _ = bench.raw.ask(header, b"", data)
    assert answer.code == pb.NOT_FOUND and answer.message.startswith('model "nobody"'), answer
    for message in (bench.refuse({"reference": "nobody", "strength": 1}, codes=(pb.NOT_FOUND,)),
                    *(bench.name(operation, "nobody", pb.NOT_FOUND)
                      for operation in (pb.LORA_HAS, pb.LORA_PIN, pb.LORA_UNPIN, pb.LORA_EVICT)),
                    bench.get("nobody", pb.NOT_FOUND)):
        assert message.startswith('LoRA "nobody"'), message
    bench.put(pair(), name="mine")
    assert bench.name(pb.LORA_UNPIN, "mine", pb.NOT_FOUND).startswith('LoRA "mine" has no pin')
    bench.is_as_before()


def test_an_upload_that_stops_half_way_is_nobodys(bench):
    data = adapter(77, unet=100_000)
    hash_of = bench.put(data, name="whole").lora.hash
    bench.name(pb.LORA_EVICT, "whole")
    begun = bench.put(step=pb.PUT_BEGIN, hash=hash_of, bytes=len(data), name="half")
    bench.put(data[:200_000], step=pb.PUT_CHUNK, upload=begun.upload)
    for reference in ("half", hash_of):
        bench.has(reference, pb.NOT_FOUND)
        bench.refuse({"reference": reference, "strength": 1}, codes=(pb.NOT_FOUND,))
    message = bench.put(code=pb.INVALID_ARGUMENT, step=pb.PUT_COMMIT, upload=begun.upload)
    assert f"200000 of {len(data)}" in message
    bench.put(step=pb.PUT_ABORT, upload=begun.upload)
    bench.is_as_before()


@pytest.mark.release
def test_all_of_it_again_and_again_leaves_the_memory_as_it_was(bench):
    def round_of_all():
        for kind, (data, words) in REFUSED.items():
            if not kind.startswith("evil"):  # those start a process each
                refuse_by_every_way(bench, kind, data, words)
        bench.evict_all()

    for _ in range(6):
        round_of_all()
    before = bench.resident_bytes()
    for _ in range(12):
        round_of_all()
    after = bench.resident_bytes()
    print(f"{before >> 10} KiB, then {after >> 10} KiB")
    assert after <= before * 1.01 + (1 << 20)
    bench.is_as_before()


# ---- files that change under the reader


def hold_open(bench, path):
    """Waits until the daemon has a file open."""
    folder = pathlib.Path(f"/proc/{bench.core}/fd")

    def is_open():
        for entry in os.listdir(folder):
            try:
                if os.readlink(folder / entry).startswith(str(path)):
                    return True
            except FileNotFoundError:
                continue
        return False

    wait_until(is_open, 10, f"{path} is open")


def large(seed):
    """What takes a while to be hashed: zeros for the UNet behind a real module."""
    return pack_safetensors({f"{STEM}.lora_down.weight": floats(4, 64) * seed,
                             f"{STEM}.lora_up.weight": floats(256, 4),
                             "lora_unet_x.lora_up.weight": np.full((32 << 20, 1), seed, np.float32)})


def rename_over(path, data):
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.rename(path)


def write_in_place(path, data):
    with open(path, "r+b") as file:
        file.seek(len(data) - 4096)
        file.write(bytes(4096))


def cut_short(path, data):
    os.truncate(path, 4096)


@pytest.mark.parametrize("change, codes", [(rename_over, [pb.OK]), (write_in_place, [pb.OK, pb.FAILED_PRECONDITION]),
                                           (cut_short, [pb.FAILED_PRECONDITION, pb.INVALID_ARGUMENT])])
def test_a_file_that_changes_while_it_is_read_is_never_half_of_each(bench, change, codes):
    old = large(1)
    path = bench.write("changing", old)
    bench.scan()
    bench.raw.send(*stack_request([{"reference": "changing", "strength": 1}]))
    hold_open(bench, path)
    change(path, large(2) if change == rename_over else old)
    answer, rest = bench.raw.receive(60)
    print(pb.Code.Name(answer.code), answer.message)
    assert answer.code in codes and (answer.code == pb.OK or "changing" in answer.message), answer
    # From now on the file is what it is now.
    now = path.read_bytes()
    if change == cut_short:
        bench.refuse({"reference": "changing", "strength": 1})
    else:
        by_name = bench.bytes_of([{"reference": "changing", "strength": 1}])[1]
        bench.put(now, name="copy")
        assert by_name == bench.bytes_of([{"reference": "copy", "strength": 1}])[1]
    path.unlink()
    bench.scan()
    bench.is_as_before()


def test_a_file_that_is_written_in_place_while_it_is_used_is_another_one(bench):
    old, new = pair(4), pair(4, stem=STEM.replace("layers_0", "layers_1"))
    assert len(old) == len(new)
    path = bench.write("rewritten", old)
    first = bench.bytes_of([{"reference": "rewritten", "strength": 1}])[1]
    with open(path, "r+b") as file:
        file.write(new)
    second = bench.bytes_of([{"reference": "rewritten", "strength": 1}])[1]
    want = bench.bytes_of([{"tensor": "lora.0", "strength": 1}], {"lora.0": new})[1]
    assert first != second == want
    path.unlink()
    bench.scan()
    bench.is_as_before()


# ---- no room to write


@pytest.fixture
def small_files(bench):
    """Lets the core write no file, and no memory that is one, above 64 KiB: what a full disk says at some byte."""
    soft, hard = resource.prlimit(bench.core, resource.RLIMIT_FSIZE)
    resource.prlimit(bench.core, resource.RLIMIT_FSIZE, (64 << 10, hard))
    yield
    resource.prlimit(bench.core, resource.RLIMIT_FSIZE, (soft, hard))


def test_an_upload_that_finds_no_room_is_refused_and_forgotten(bench, small_files):
    data = adapter(78, unet=100_000)
    assert "too large" in bench.put(data, pb.RESOURCE_EXHAUSTED, name="full")
    assert "too large" in bench.refuse({"reference": "full", "tensor": "lora.0", "strength": 1}, {"lora.0": data},
                                       (pb.RESOURCE_EXHAUSTED,))
    begun = bench.put(step=pb.PUT_BEGIN, hash="ab" * 32, bytes=len(data))
    bench.put(data[:1000], step=pb.PUT_CHUNK, upload=begun.upload)
    bench.put(data[1000:], pb.RESOURCE_EXHAUSTED, step=pb.PUT_CHUNK, upload=begun.upload, offset=1000)
    bench.put(code=pb.NOT_FOUND, step=pb.PUT_ABORT, upload=begun.upload)
    bench.has("full", pb.NOT_FOUND)
    bench.is_as_before()


def test_a_client_whose_disk_is_full_says_so(bench, tmp_path):
    bench.put(adapter(79, unet=100_000), name="large")
    for connect in (bench.daemon.ipc, bench.daemon.tcp):
        done = bench.daemon.cli("loras", "get", "large", "-o", "/dev/full", "--connect", connect)
        lines = done.stderr.decode().splitlines()
        assert done.returncode == 1 and len(lines) == 1 and "No space left" in lines[0], done
    done = bench.daemon.cli("text", "a cat", "--lora", "large:0.5", "-o", "/dev/full")
    assert done.returncode == 1 and b"No space left" in done.stderr, done
    bench.is_as_before()


# ---- requests that are taken back


def is_answered_soon(bench, begun, *cancelled):
    """Reads the answers to a cancel and to what was taken back; then a plain prompt has to be quick."""
    codes = {}
    while len(codes) < 1 + len(cancelled):
        answer, _ = bench.raw.receive(20)
        codes[answer.id] = answer.code
    assert all(codes[header.id] == pb.CANCELLED for header in cancelled), codes
    assert bench.bytes_of([])[1] == bench.plain[1]
    return time.monotonic() - begun


@pytest.mark.release
def test_a_cancel_while_a_file_is_read_frees_its_request_at_once(bench):
    path = bench.write("slow", large(3))
    bench.scan()
    header, *frames = stack_request([{"reference": "slow", "strength": 1}])
    bench.raw.send(header, *frames)
    hold_open(bench, path)
    begun = time.monotonic()
    bench.raw.send(request(pb.CANCEL), pb.Cancel(id=header.id))
    spent = is_answered_soon(bench, begun, header)
    print(f"{spent:.3f} s")
    assert spent <= 0.5
    wait_until(lambda: bench.stats().totals.entries == 1, 10, "the file was read for others")
    bench.name(pb.LORA_EVICT, "slow")  # nobody holds it
    path.unlink()
    bench.scan()
    bench.is_as_before()


@pytest.mark.release
def test_a_cancel_of_a_merge_stops_it_and_frees_its_lane(bench):
    size = 386  # of a rotation; 128 of them turn the rows of the table of tokens, which takes seconds
    table = "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding"
    bench.put(pack_safetensors({f"{table}.oft_blocks": floats(49408 // size, size, size) / 100}), name="slow")
    bench.put(pack_safetensors({f"{STEM}.diff": floats(256, 64)}), name="quick")
    wait_until(lambda: bench.stats().totals.entries == 2, 10, "both are there")
    header, *frames = stack_request(4 * [{"reference": "slow", "strength": 0.5}])
    bench.raw.send(header, *frames)
    beside = Client(bench.daemon)  # the answer is for the other one
    wait_until(lambda: beside.stats().merged_bytes > 0, 20, "it merges")
    beside.raw.close()
    assert bench.raw.is_silent(200)
    begun = time.monotonic()
    bench.raw.send(request(pb.CANCEL), pb.Cancel(id=header.id))
    spent = is_answered_soon(bench, begun, header)
    merging = time.monotonic()
    reply, payloads = bench.bytes_of([{"reference": "quick", "strength": 1}])
    merged = time.monotonic() - merging
    print(f"{spent:.3f} s, the next merge {merged:.3f} s")
    assert spent <= 0.5 and merged <= 0.5
    assert reply.loras_merged and payloads != bench.plain[1]
    bench.is_as_before()
