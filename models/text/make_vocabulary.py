"""Turns bpe_merges.txt.gz into vocabulary.c, the constant tables that vocabulary.h declares.

Ids are CLIP's: 0..255 the bytes in GPT-2's order (printable ones first), 256..511 the same as the
last symbol of a word, then one id a merge. Merges are sorted by their left symbol, then by their
right one, and found through the index of the first merge of each left symbol.
"""

import gzip
import sys

BYTES = 256
MERGES = 48894
END = "</w>"


def byte_symbols():
    """The character that stands for each byte in the merges, and the bytes in order of their ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols.update({byte: chr(BYTES + index) for index, byte in enumerate(others)})
    return symbols, printable + others


def rows(values, per_line=16):
    for begin in range(0, len(values), per_line):
        yield "    " + ", ".join(str(value) for value in values[begin : begin + per_line]) + ","


def table(c_type, name, values):
    return [f"const {c_type} {name}[{len(values)}] = {{", *rows(values), "};", ""]


def main(source, target):
    lines = gzip.open(source, "rt", encoding="utf-8").read().splitlines()
    assert len(lines) == MERGES, f"{len(lines)} merges"

    symbols, order = byte_symbols()
    ids = {symbols[byte]: index for index, byte in enumerate(order)}
    ids.update({symbols[byte] + END: BYTES + index for index, byte in enumerate(order)})
    merges = []
    for rank, line in enumerate(lines):
        left, right = line.split(" ")
        merged = 2 * BYTES + rank
        merges.append((ids[left], ids[right], merged))
        assert left + right not in ids, f"{line!r} makes a symbol that exists"
        ids[left + right] = merged

    merges.sort()
    begins = [0] * (2 * BYTES + MERGES + 1)
    for left, _, _ in merges:
        begins[left + 1] += 1
    for left in range(1, len(begins)):
        begins[left] += begins[left - 1]

    position = {byte: index for index, byte in enumerate(order)}
    text = ["// Made by make_vocabulary.py.", "", '#include "models/text/vocabulary.h"', ""]
    text += table("uint8_t", "vocabulary_byte_ids", [position[byte] for byte in range(BYTES)])
    text += table("uint16_t", "vocabulary_merge_begins", begins)
    text += table("uint16_t", "vocabulary_merge_rights", [right for _, right, _ in merges])
    text += table("uint16_t", "vocabulary_merge_ids", [merged for _, _, merged in merges])
    with open(target, "w", encoding="ascii") as out:
        out.write("\n".join(text))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
