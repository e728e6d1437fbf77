"""Prompts through Python and the wire: tokens, chunks, weights, conditioning, notes."""

import numpy as np
import pytest

from files import pack_safetensors

START, END = 49406, 49407

# Ids of spec/text.md, Appendix B: those of the slow tokenizer where the two differ.
TOKENS = [
    ("a photo of a cat", [320, 1125, 539, 320, 2368]),
    ("A Photo  of\na CAT", [320, 1125, 539, 320, 2368]),
    ("masterpiece, best quality, 1girl", [12066, 267, 949, 3027, 267, 272, 1611]),
    ("photo-realistic", [1125, 268, 16157]),
    ("it's don't we'll", [585, 568, 847, 713, 649, 1342]),
    ("cat!!!", [2368, 995]),
    ("2024", [273, 271, 273, 275]),
    ("1.5", [272, 269, 276]),
    ("a BREAK b", [320, 2568, 321]),
    (r"\(literal\)", [263, 24269, 264]),
    ("caf\u00e9", [15304]),
    ("e\u0301", [4166]),
    ("na\u00efve", [1097, 35689, 563]),
    ("\u65e5\u672c\u8a9e", [37156, 19277, 361, 34002, 508]),
    ("\u732b\u3068\u72ac", [163, 234, 360, 4813, 357, 163, 232, 361]),
    ("\u200bzero", [5848]),
    ("\u0141\u00f3d\u017a", [40419, 8891, 67, 129, 374]),
    ("\u00df", [127, 509]),
    ("\U0001f431", [22979]),
    ("emoji \U0001f431\U0001f44d", [16327, 35710, 4201]),
    ("<lora:foo:1>", [283, 2179, 320, 281, 23435, 281, 272, 285]),
    ("8k, hdr, f/1.8, 50mm", [279, 330, 267, 28065, 267, 325, 270, 272, 269, 279, 267, 276, 271, 2848]),
    ("a_b-c", [320, 318, 321, 268, 322]),
    ("", []),
    ("   ", []),
    ("!!", [748]),
    ("\u00bd cup", [33613, 1937]),
    ("\u0130stanbul", [328, 16384, 11231]),
]

# Segments of Appendix A: (prompt, [(words, weight)]).
WEIGHTS = [
    ("a (b) c", [("a", 1), ("b", 1.1), ("c", 1)]),
    ("((a))", [("a", 1.2100000000000002)]),
    ("(a:1.3)", [("a", 1.3)]),
    ("((a):1.3)", [("a", 1.4300000000000002)]),
    ("(a:0)", [("a", 0.0)]),
    ("(a:-1)", [("a", -1.0)]),
    ("(a:1e1)", [("a", 10.0)]),
    ("x ((((y (z:6) w:100)))) q", [("x", 1), ("y", 100), ("z", 6), ("w", 100), ("q", 1)]),
]


@pytest.fixture(scope="module")
def client(shared):
    import luna

    with luna.connect(shared.ipc) as daemon:
        yield daemon


@pytest.mark.parametrize("text, ids", TOKENS, ids=[ascii(text) for text, _ in TOKENS])
def test_tokens_are_those_of_the_reference(client, text, ids):
    chunks = client.tokenize(text)
    assert [[token for token, _ in chunk] for chunk in chunks["l"]] == [[START, *ids] + [END] * (76 - len(ids))]
    assert [[token for token, _ in chunk] for chunk in chunks["g"]] == [[START, *ids, END] + [0] * (75 - len(ids))]


@pytest.mark.parametrize("prompt, segments", WEIGHTS)
def test_weights_are_those_of_the_reference(client, prompt, segments):
    expected = [(token, weight) for words, weight in segments
                for token, _ in client.tokenize(words, weights=False)["l"][0][1:] if token != END]
    got = [tuple(pair) for pair in client.tokenize(prompt)["l"][0][1:] if pair[0] != END]
    assert got == expected


def test_weights_may_be_switched_off(client):
    chunk = client.tokenize("(a:1.2)", weights=False)["l"][0]
    assert {weight for _, weight in chunk} == {1.0} and chunk[1][0] == 263


def test_76_words_make_a_second_chunk(client):
    assert len(client.tokenize("cat " * 75)["l"]) == 1
    chunks = client.tokenize("cat " * 76)["l"]
    assert len(chunks) == 2 and all(len(chunk) == 77 for chunk in chunks)
    assert [token for token, _ in chunks[1]][:3] == [START, 2368, END]


def test_conditioning_has_the_shapes_of_sdxl(client):
    result = client.encode_text("a cat")
    assert result.cond.shape == (1, 77, 192) and result.pooled.shape == (1, 128)
    assert result.cond.dtype == np.float32 and np.isfinite(result.cond).all() and result.cond.std() > 0.1
    assert result.negative_cond is None and result.negative_pooled is None and result.notes == []


def test_long_prompts_are_longer(client):
    assert client.encode_text("cat " * 100).cond.shape == (1, 154, 192)


def test_the_negative_text_is_the_same_as_if_asked_alone(client):
    both = client.encode_text("a cat", negative="blurry, ugly")
    alone = client.encode_text("blurry, ugly")
    assert both.negative_cond.tobytes() == alone.cond.tobytes()
    assert both.negative_pooled.tobytes() == alone.pooled.tobytes()
    assert both.cond.tobytes() == client.encode_text("a cat").cond.tobytes()


def test_the_second_text_feeds_big_g(client):
    one, other = client.encode_text("a cat"), client.encode_text("a dog")
    mixed = client.encode_text("a cat", prompt_2="a dog")
    assert mixed.cond[..., :64].tobytes() == one.cond[..., :64].tobytes()
    assert mixed.cond[..., 64:].tobytes() == other.cond[..., 64:].tobytes()
    assert mixed.pooled.tobytes() == other.pooled.tobytes()


def test_missing_chunks_come_from_the_empty_prompt(client):
    mixed = client.encode_text("a cat", prompt_2="dog " * 100)
    assert mixed.cond.shape == (1, 154, 192)
    assert mixed.cond[:, 77:, :64].tobytes() == client.encode_text("").cond[..., :64].tobytes()


def test_weights_move_from_the_empty_prompt(client):
    plain, empty = client.encode_text("a cat").cond, client.encode_text("").cond
    heavy = client.encode_text("(a cat:1.5)").cond
    expected = empty + (plain - empty) * np.float32(1.5)
    assert np.abs(heavy[:, 1:3] - expected[:, 1:3]).max() <= 1e-5 * np.abs(expected).max()
    assert heavy[:, :1].tobytes() == plain[:, :1].tobytes()
    assert client.encode_text("(a cat:1.5)", weights=False).cond.tobytes() != heavy.tobytes()


def test_clip_skip_is_taken_with_either_sign(client):
    default = client.encode_text("a cat").cond
    assert client.encode_text("a cat", clip_skip=2).cond.tobytes() == default.tobytes()
    assert client.encode_text("a cat", clip_skip=-2).cond.tobytes() == default.tobytes()
    last = client.encode_text("a cat", clip_skip=1).cond
    assert not np.array_equal(last, default)
    assert np.array_equal(client.encode_text("a cat", clip_skip=1).pooled, client.encode_text("a cat").pooled)


def test_answers_in_half_precision(client):
    whole = client.encode_text("a cat")
    half = client.encode_text("a cat", dtype="f16")
    assert half.cond.dtype == np.float16 and np.array_equal(half.cond, whole.cond.astype(np.float16))


def test_unknown_embeddings_are_skipped_and_known_ones_used(make_daemon, models):
    folder = models / "embeddings"
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(1)
    tensors = {"clip_l": random.standard_normal((2, 64)).astype(np.float32),
               "clip_g": random.standard_normal((2, 128)).astype(np.float32)}
    (folder / "style.safetensors").write_bytes(pack_safetensors(tensors))
    client = make_daemon(extra=f"embeddings = {folder}\n").connect()
    unknown = client.encode_text("a embedding:nothing cat")
    assert any("nothing" in note for note in unknown.notes)
    assert unknown.cond.tobytes() == client.encode_text("a cat").cond.tobytes()
    known = client.encode_text("a embedding:style cat")
    assert known.notes == [] and known.cond.shape == (1, 77, 192)
    assert known.cond.tobytes() != unknown.cond.tobytes()
    assert known.cond[:, :2].tobytes() == unknown.cond[:, :2].tobytes()  # causal: "a" stands before it
