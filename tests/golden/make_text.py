"""Makes tests/golden/text/: what Luna's text half must reproduce.

    make_text.py             tokens.json, numbers.json, prompts.json, cases.json, cases.safetensors,
                             embeddings/
    make_text.py --real DIR  random CLIP-L and bigG of real size, and cases for them, in DIR (4 GB)

Token ids come from transformers' CLIPTokenizer (the Python one, below version 5, without ftfy),
numbers from Python's float(), hidden states from transformers' CLIP modules. What lies between them
(parentheses, chunks, weights, embeddings) is written here once more, naively, from the description
of ComfyUI's behaviour.

Weights are not committed: both sides compute them from a tensor's name. Element i of tensor NAME is
    (top 24 bits of splitmix64(fnv1a64(NAME) + (i + 1) * 0x9E3779B97F4A7C15) / 2^23 - 1) * scale
with a power of two as scale, plus 1 for the gammas of norms, plus the outliers of `tensor`.
"""

import gzip
import json
import pathlib
import random
import sys
import tempfile
import unicodedata

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = HERE / "text"
sys.path.insert(0, str(ROOT / "models" / "text"))
import make_vocabulary  # noqa: E402

START, END = 49406, 49407
TOKENS = 77
STRIDE = 6  # every 6th token of a cond is stored
TINY = {
    "clip_l": dict(width=64, mlp=256, layers=3, quick=True, projection=0, pad=END),
    "clip_g": dict(width=128, mlp=512, layers=3, quick=False, projection=128, pad=0),
    "clip_h": dict(width=128, mlp=512, layers=3, quick=False, projection=128, pad=0),
}
REAL = {
    "clip_l": dict(width=768, mlp=3072, layers=12, quick=True, projection=0, pad=END),
    "clip_g": dict(width=1280, mlp=5120, layers=32, quick=False, projection=1280, pad=0),
}
KINDS = {
    "sd1": dict(parts=["clip_l"], pooled="clip_l", default=1, norm=True),
    "sd2": dict(parts=["clip_h"], pooled="clip_h", default=2, norm=True),
    "sdxl": dict(parts=["clip_l", "clip_g"], pooled="clip_g", default=2, norm=False),
    "refiner": dict(parts=["clip_g"], pooled="clip_g", default=2, norm=False),
}


# The weights.


def splitmix(name, count):
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & (2**64 - 1)
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)


def scale(name, shape):
    if "embedding" in name:
        return 2.0**-4
    if "norm" in name:
        return 2.0**-4
    if name.endswith("bias"):
        return 2.0**-6
    return {64: 2.0**-3, 128: 2.0**-3, 256: 2.0**-4, 512: 2.0**-4}.get(shape[-1], 2.0**-5)


def tensor(part, name, shape):
    count = int(np.prod(shape))
    values = splitmix(part + "." + name, count) * np.float32(scale(name, shape))
    if "norm" in name and name.endswith("weight"):
        values = values + np.float32(1)
    # Outliers as real encoders have them: a channel of the residual far above all others.
    if name.endswith("layers.0.mlp.fc2.bias"):
        values[7] = 24
        values[40] = -12
    if "layer_norm1.weight" in name:
        values[3] = 4
    return torch.from_numpy(values).reshape(shape)


def build(part, sizes):
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=sizes["width"], intermediate_size=sizes["mlp"],
        num_hidden_layers=sizes["layers"], num_attention_heads=sizes["width"] // 64,
        max_position_embeddings=TOKENS, hidden_act="quick_gelu" if sizes["quick"] else "gelu",
        layer_norm_eps=1e-5, attn_implementation="eager",
    )
    model = CLIPTextModel(config).eval()
    state = {
        name: tensor(part, name, tuple(value.shape))
        for name, value in model.state_dict().items()
        if not name.endswith("position_ids")
    }
    model.load_state_dict(state, strict=False)
    projection = None
    if sizes["projection"]:
        projection = tensor(part, "text_projection.weight", (sizes["projection"], sizes["width"]))
    return model, projection


# Prompts.


def items(text):
    out, current, level = [], "", 0
    for char in text:
        if char == "(":
            if level == 0 and current:
                out.append(current)
                current = ""
            level += 1
            current += char
        elif char == ")":
            level -= 1
            current += char
            if level == 0:
                out.append(current)
                current = ""
        else:
            current += char
    return out + [current] if current else out


def weigh(text, weight):
    out = []
    for item in items(text):
        if not (len(item) >= 2 and item[0] == "(" and item[-1] == ")"):
            out.append((item, weight))
            continue
        inside, inner_weight = item[1:-1], weight * 1.1
        colon = inside.rfind(":")
        if colon > 0:
            try:
                inner_weight = float(inside[colon + 1 :])
                inside = inside[:colon]
            except ValueError:
                pass
        out += weigh(inside, inner_weight)
    return out


def parse(text):
    text = text.replace("\\)", "\0\1").replace("\\(", "\0\2")
    return [(t.replace("\0\1", ")").replace("\0\2", "("), w) for t, w in weigh(text, 1.0)]


# Tokens.


def make_tokenizer():
    source = ROOT / "models" / "text" / "bpe_merges.txt.gz"
    lines = gzip.open(source, "rt", encoding="utf-8").read().splitlines()
    symbols, order = make_vocabulary.byte_symbols()
    vocabulary = [symbols[byte] for byte in order]
    vocabulary += [symbol + "</w>" for symbol in vocabulary]
    vocabulary += [line.replace(" ", "") for line in lines]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        paths = [folder + "/vocab.json", folder + "/merges.txt"]
        pathlib.Path(paths[0]).write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}))
        pathlib.Path(paths[1]).write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
        tokenizer = CLIPTokenizer(*paths)
    assert tokenizer.fix_text is None, "ftfy is installed: it changes the ids"
    return tokenizer


def encode(tokenizer, text):
    return tokenizer(text)["input_ids"][1:-1] if text else []


def groups(tokenizer, text, vectors):
    """The groups of one encoder: lists of (id or vector, weight)."""
    out = []
    for segment, weight in parse(text):
        pieces = segment.replace("\nembedding:", " embedding:").split(" embedding:")
        pieces = pieces[:1] + ["embedding:" + piece for piece in pieces[1:]]
        for piece in filter(None, pieces):
            if piece.startswith("embedding:"):
                words = piece[len("embedding:") :].split()
                name, piece = words[0], " ".join(words[1:])
                if name not in vectors and name.strip(",") != name:
                    stripped = name.strip(",")
                    piece = name[len(stripped) :] + " " + piece
                    name = stripped
                if name in vectors:
                    out.append([(vector, weight) for vector in vectors[name]])
            if piece:
                out.append([(token, weight) for token in encode(tokenizer, piece)])
    return out


def chunk(token_groups, pad):
    chunks = [[(START, 1.0)]]
    for group in token_groups:
        large = len(group) >= 8
        while group:
            room = TOKENS - 1 - len(chunks[-1])
            if len(group) <= room:
                chunks[-1] += group
                break
            if large:
                chunks[-1] += group[:room]
                group = group[room:]
            chunks[-1] += [(END, 1.0)]
            chunks[-1] += [(pad, 1.0)] * (TOKENS - len(chunks[-1]))
            chunks.append([(START, 1.0)])
    chunks[-1] += [(END, 1.0)]
    chunks[-1] += [(pad, 1.0)] * (TOKENS - len(chunks[-1]))
    return chunks


# Encoders.


def run(encoder, sizes, chunks, layer, norm):
    """Hidden states [chunks, 77, width] and pooled [1, width] of one encoder."""
    model, projection = encoder
    text = model.text_model
    table = text.embeddings.token_embedding.weight
    rows, counts = [], []
    for row in chunks:
        states, ones, ended = [], 0, False
        for token, _ in row:
            if isinstance(token, int):
                states.append(table[token])
                ones += not ended
                ended = ended or token == END
            elif token.shape[-1] == sizes["width"]:
                states.append(token)
                ones += 1
        states += [table[sizes["pad"]]] * (TOKENS - len(states))
        rows.append(torch.stack(states))
        counts.append(ones)
    hidden = torch.stack(rows) + text.embeddings.position_embedding.weight
    mask = torch.full((TOKENS, TOKENS), torch.finfo(torch.float32).min).triu(1)[None, None]
    wanted = None
    for index, block in enumerate(text.encoder.layers):
        hidden = block(hidden, attention_mask=None, causal_attention_mask=mask)[0]
        if index + 1 == layer:
            wanted = text.final_layer_norm(hidden) if norm else hidden
    pooled = text.final_layer_norm(hidden)[0:1, counts[0] - 1]
    if projection is not None:
        pooled = pooled @ projection.T
    return wanted, pooled


def encode_part(encoder, sizes, chunks, kind, skip):
    layers = sizes["layers"]
    skip = abs(skip) or kind["default"]
    layer, norm = (layers, True) if skip > layers else (layers - skip + 1, kind["norm"])
    weighted = any(weight != 1.0 for row in chunks for _, weight in row)
    empty = [(START, 1.0), (END, 1.0)] + [(sizes["pad"], 1.0)] * (TOKENS - 2)
    z, pooled = run(encoder, sizes, chunks + [empty] * weighted, layer, norm)
    if weighted:
        e = z[-1]
        z = z[:-1].clone()
        for k, row in enumerate(chunks):
            for j, (_, weight) in enumerate(row):
                if weight != 1.0:
                    z[k, j] = (z[k, j] - e[j]) * weight + e[j]
    return z.reshape(1, -1, z.shape[-1]), pooled


def encode_text(tokenizer, encoders, sizes, kind, case, which, vectors):
    """cond, pooled and the chunks by part; which is "prompt" or "negative"."""
    chunks = {}
    second = case.get(which + "_2")
    for part in kind["parts"]:
        text = second if second is not None and part == "clip_g" else case[which]
        chunks[part] = chunk(groups(tokenizer, text, vectors.get(part, {})), sizes[part]["pad"])
    if second is not None:
        most = max(len(rows) for rows in chunks.values())
        for part, rows in chunks.items():
            rows += chunk([], sizes[part]["pad"]) * (most - len(rows))
    conds, pooled = [], None
    for part in kind["parts"]:
        cond, part_pooled = encode_part(
            encoders[part], sizes[part], chunks[part], kind, case.get("clip_skip", 0)
        )
        conds.append(cond)
        if part == kind["pooled"]:
            pooled = part_pooled
    shortest = min(cond.shape[1] for cond in conds)
    return torch.cat([cond[:, :shortest] for cond in conds], dim=-1), pooled, chunks


LONG = "an (ancient:1.25) library of glass, " + ", ".join(
    f"shelf {i} of brass and (walnut wood:0.9)" for i in range(14)
)
CASES = [
    dict(name="sdxl", kind="sdxl", prompt="a photo of a (red:1.3) fox", negative="blurry, (ugly)"),
    dict(name="sdxl_long", kind="sdxl", prompt=LONG, negative=""),
    dict(name="sdxl_second", kind="sdxl", prompt="a fox", prompt_2=LONG),
    dict(name="sdxl_last", kind="sdxl", prompt="a fox in the snow", clip_skip=-1),
    dict(name="sdxl_skip", kind="sdxl", prompt="a (fox:-0.5) in the snow", clip_skip=3),
    dict(name="sdxl_beyond", kind="sdxl", prompt="a fox in the snow", clip_skip=-12),
    dict(name="sdxl_end", kind="sdxl", prompt="a fox <|endoftext|> in (the snow)"),
    dict(
        name="sdxl_embedding", kind="sdxl",
        prompt="a embedding:both, (fox embedding:narrow:1.2) in (the:1.1) snow embedding:gone,",
    ),
    dict(name="sd1", kind="sd1", prompt="a cat", negative="a ((dog))"),
    dict(name="sd1_skip", kind="sd1", prompt="a (cat:1.2)", clip_skip=2),
    dict(name="sd2", kind="sd2", prompt="a (cat:1.2)", negative=""),
    dict(name="refiner", kind="refiner", prompt="a (cat:0.7)"),
]


def make_embeddings(sizes, folder):
    """Two files: one with vectors for both encoders, one for the narrow encoder only."""
    folder.mkdir(parents=True, exist_ok=True)
    narrow, wide = sizes["clip_l"]["width"], sizes["clip_g"]["width"]
    both = {
        "clip_l": torch.from_numpy(splitmix("both.l", 2 * narrow) / 8).reshape(2, narrow),
        "clip_g": torch.from_numpy(splitmix("both.g", 3 * wide) / 8).reshape(3, wide),
    }
    single = torch.from_numpy(splitmix("narrow", 2 * narrow) / 8).reshape(2, narrow)
    save_file(both, folder / "both.safetensors")
    save_file({"emb_params": single}, folder / "narrow.safetensors")
    rows = {"clip_l": list(both["clip_l"]), "clip_g": list(both["clip_g"])}
    return {part: {"both": rows[part], "narrow": list(single)} for part in rows}


def make_cases(tokenizer, sizes, cases, folder, stride):
    encoders = {part: build(part, sizes[part]) for part in sizes}
    vectors = make_embeddings(sizes, folder / "embeddings")
    tensors, listing = {}, []
    for case in cases:
        kind = KINDS[case["kind"]]
        entry = dict(case, tokens={})
        for which in ("prompt", "negative"):
            if which not in case:
                continue
            with torch.no_grad():
                cond, pooled, chunks = encode_text(
                    tokenizer, encoders, sizes, kind, case, which, vectors
                )
            tensors[f"{case['name']}.{which}.cond"] = cond[:, ::stride].contiguous()
            tensors[f"{case['name']}.{which}.pooled"] = pooled.contiguous()
            # A vector is written as -1; only ids and weights that are not 1 are listed.
            entry["tokens"][which] = {
                part: [[t if isinstance(t, int) else -1 for t, _ in row] for row in rows]
                for part, rows in chunks.items()
            }
        listing.append(entry)
    save_file(tensors, folder / "cases.safetensors", metadata={"stride": str(stride)})
    (folder / "cases.json").write_text(json.dumps(listing, separators=(",", ":")) + "\n")


# Strings.


def assigned(code):
    return not 0xD800 <= code < 0xE000 and unicodedata.category(chr(code)) != "Cn"


def token_strings(tokenizer):
    rng = random.Random(1)
    every = [chr(code) for code in range(0x110000) if assigned(code)]
    words = [line.replace(" ", "").replace("</w>", " ")
             for line in gzip.open(ROOT / "models/text/bpe_merges.txt.gz", "rt").read().splitlines()]
    words = [word for word in words if word.isascii()]
    pools = [
        every, [c for c in every if ord(c) < 0x250], [chr(c) for c in range(0x300, 0x370)] + list("aou"),
        [c for c in every if 0x370 <= ord(c) < 0x400], list("abcstdrevlm' "),
        [c for c in every if 0x1F00 <= ord(c) < 0x2000] + list("\u0301\u0345\u0308"),
        [c for c in every if 0x900 <= ord(c) < 0xE00], list(" aA1!,():.<>|'\t\n\r\x0b\x85\u2028\u3000\u200b"),
        [chr(c) for c in range(0xAC00, 0xAC40)] + [chr(c) for c in range(0x1100, 0x1200)],
        list("'\u017f\u03a3\u03c3\u0130 \u0301\u0315\u0316\u0327\u0345\u00ad\ufeff\u11a7\uac1c"),
        list("日本語猫犬ひカ한é e\u0301ﬁ🐱👍½²Ⅷ٣"),
    ]
    texts = ["", "   ", "<|endoftext|> x", "a<|ENDOFTEXT|>b", "!!<|endoftext|>", "!!<|ENDOFTEXT|>",
             "<|\u017ftartoftext|>", "it'\u017f", "\u0130stanbul", "<|startof<|endoftext|>",
             "ΑΣ", "Σ", "ΑΣ'Β", "ΑΣ' Β", "aΣ\u0301", "Σ\u00adΣ", "ͅ", "a\u0345b", "A Photo  of\na CAT"]
    for _ in range(900):
        pool = rng.choice(pools)
        texts.append("".join(rng.choice(pool) for _ in range(rng.randint(1, 16))))
    for _ in range(300):
        texts.append("".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 16))))
        texts.append("".join(rng.choice(words) for _ in range(rng.randint(1, 10))))
    return [[text, encode(tokenizer, text)] for text in texts]


def number_strings():
    rng = random.Random(2)
    texts = ["0", "1", "1.2", ".5", "5.", ".", "", "1_0", "1__0", "_1", "1_", "1e5", "1e", "1e+5", "1e_5",
             "1_0e1_0", "1_.5", "1._5", "inf", "-inf", "+Infinity", "nan", "-NaN", "infinit", "0x10",
             "１.５", "١٢", "\u00a01\u2003", "\x1c1", "\x851", "1\x7f", "1é", "1\0", "++1", "+-1", "1e400",
             "1e-400", "4.9e-324", "123456789012345678901234567890", "0.1000000000000000055511151231257827",
             "\U0001d7d9\U0001d7e2", "\t1\n", "1 2", "1,2", "-0", "1d5", "1f", "nan(1)", "1\x0b", "1\u3000",
             "1\u200b", "inf inity", "１_０", "1e１", "²"]
    for _ in range(400):
        texts.append("".join(rng.choice("0123456789.._e+- ") for _ in range(rng.randint(1, 7))))
    out = []
    for text in texts:
        try:
            out.append([text, float(text).hex()])
        except ValueError:
            out.append([text, None])
    return out


def prompt_strings():
    rng = random.Random(3)
    alphabets = ["()", "(():.1", "()ab:1.e2_ -\\", "(:inf)nan", "()\0\1\2\\:1", "(()a b:1)"]
    texts = []
    for _ in range(1200):
        alphabet = rng.choice(alphabets)
        texts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(0, 14))))
    return [[text, [[t, w.hex()] for t, w in parse(text)]] for text in texts]


def write_lines(path, entries):
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    path.write_text("[\n" + lines + "\n]\n")


def main():
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    if len(sys.argv) == 3 and sys.argv[1] == "--real":
        make_real(tokenizer, pathlib.Path(sys.argv[2]))
        return
    OUT.mkdir(exist_ok=True)
    write_lines(OUT / "tokens.json", token_strings(tokenizer))
    write_lines(OUT / "numbers.json", number_strings())
    write_lines(OUT / "prompts.json", prompt_strings())
    make_cases(tokenizer, TINY, CASES, OUT, STRIDE)


def make_real(tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("sdxl", "sdxl_last", "sd1")
    make_cases(tokenizer, REAL, [case for case in CASES if case["name"] in names], folder, 1)


if __name__ == "__main__":
    main()
