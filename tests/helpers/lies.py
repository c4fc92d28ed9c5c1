"""Headers and configurations that lie: real ones, changed at random."""

import copy
import json
import math
import random
import re
from pathlib import Path


def deep(levels: int) -> str:
    """Stands for so many lists in each other, which json can't write."""
    return f"<{levels} deep>"


NUMBERS = (
    *(0, -1, 1, 2, 3, 7, 64, 65, 1000, 10**6, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30), 10**400),
    *(0.5, -0.5, 1e-320, 1e-30, 1e30, 1e308, 33.0, math.nan, math.inf, -math.inf, True, False),
)
TEXTS = ("", "1", "33", "nan", "F32", "x" * 100_000, "\ud800", "\x1b[31m\n", "\u202e", "../../x.safetensors", "a\0b")
OTHERS = (None, [], {}, [1], [[1]], {"a": 1}, [None] * 1000, deep(900), deep(200), deep(100_000), [10**30] * 4)
NASTY = (*NUMBERS, *TEXTS, *OTHERS)
KEYS = (
    *("", "x", "__metadata__", "x" * 100_000, "a_" * 5000, "a\nb", "\ud800", "cogvideox_fun_config", "scaled_fp8"),
    *("transformer_blocks.999999999.ff.net.2.weight", "transformer_blocks.-1.x", "transformer_blocks", "a.b.c"),
    *("transformer_blocks.x.y", "transformer_blocks.999.attn1.to_q.weight", "transformer_blocks.2.attn1.to_q.weight"),
    *("encoder.down_blocks.0.resnets.x", "encoder.down_blocks.0.resnets.", "encoder.down_blocks.0.resnets.10000000.a"),
    *("ofs_embedding.linear_1.weight", "blocks.0.q.weight", "model.diffusion_model.x", "patch_embed.pos_embedding"),
)


def to_text(value) -> str:
    return re.sub(r'"<(\d+) deep>"', lambda m: "[" * int(m[1]) + "]" * int(m[1]), json.dumps(value))


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut, doubled or put in."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(5):
            case 0 | 1 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                data[at:at] = rng.choice((b"{", b"}", b"[", b"]", b",", b":", b'"', b"-", b"9", b"e9", b"\0", b"\xff"))
            case 3:
                del data[at : at + rng.choice((1, 2, 10, 1000))]
            case 4:
                data[at:at] = data[at : at + rng.randrange(200)]
    return bytes(data)


def change_values(rng: random.Random, values: dict) -> dict:
    """Some of an object's values or names made nasty."""
    values = dict(values)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(list(values) or ["x"])
        match rng.randrange(8):
            case 0:
                values.pop(name, None)
            case 1:
                values[rng.choice(KEYS)] = rng.choice(NASTY)
            case 2 if isinstance(values.get(name), list) and values[name]:
                values[name] = list(values[name])
                values[name][rng.randrange(len(values[name]))] = rng.choice(NASTY)
            case 3 if type(values.get(name)) in (int, float):
                values[name] = rng.choice((-1, 2, 10, 1000, 10**9, 1e-9, 1e300)) * values[name]
            case _:
                values[name] = rng.choice(NASTY)
    return values


def change_json(rng: random.Random, values: dict) -> bytes:
    """A configuration, changed."""
    match rng.randrange(10):
        case 0 | 1:
            return change_bytes(rng, json.dumps(values).encode())
        case 2:
            return to_text(rng.choice(NASTY)).encode("utf-8", "surrogatepass")
        case 3:
            text, again = to_text(values), to_text(change_values(rng, values))
            return f"{text[:-1]}, {again[1:]}".encode()  # every name twice
        case 4:
            return to_text(change_values(rng, values)).encode(rng.choice(("utf-16", "utf-8-sig", "utf-32")))
        case _:
            return to_text(change_values(rng, values)).encode()


def lie(rng: random.Random, entry: dict, entries: list[dict]) -> None:
    """Change an entry of a header."""
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    match rng.randrange(14):
        case 0:
            entry["data_offsets"] = rng.choice(([-1, end], [end, begin], [begin], [begin, end, end], [begin, 2**64]))
        case 1:
            entry["data_offsets"] = [rng.choice(NASTY), rng.choice((*NASTY, end))]
        case 2:
            entry["data_offsets"] = [begin - 2**64, end - 2**64]
        case 3:
            entry["data_offsets"] = list(rng.choice(entries)["data_offsets"])  # over another tensor
        case 4:
            entry["shape"] = rng.choice(([], [0], [*shape, 1], [1] * 100, [-1, *shape], [[1]], [None]))
        case 5:
            entry["shape"] = [-n for n in shape]  # the product may stay the same
        case 6:
            entry["shape"] = [2**32, 2**32, 0] if rng.random() < 0.5 else [2**64 // 4 + n for n in shape]
        case 7 if shape:
            shape[rng.randrange(len(shape))] = rng.choice(NASTY)
        case 8:
            entry["dtype"] = rng.choice(("F64", "F16", "BF16", "F8_E4M3", "F4", "BOOL", "U8", "f32", *NASTY))
        case 9:  # a right shape and place of another size, so that what follows lies wrong
            entry["shape"], entry["data_offsets"] = [1], [begin, begin + 4]
        case 10:  # right in every way but the shape
            entry["shape"] = rng.choice((shape[::-1], [1, *shape], [*shape, 1], [math.prod(shape)]))
        case 11:
            entry.pop(rng.choice(list(entry)))
        case 12:
            entry[rng.choice(list(entry))] = rng.choice(NASTY)
        case 13:
            entry["dtype"], entry["shape"] = "U8", [*shape, 4]


def change_header(rng: random.Random, header: dict) -> bytes:
    """A safetensors header, changed."""
    if rng.random() < 0.2:
        return change_bytes(rng, json.dumps(header).encode())
    header = copy.deepcopy(header)
    entries = [entry for key, entry in header.items() if key != "__metadata__"]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        key = rng.choice([key for key in header if key != "__metadata__"])
        match rng.randrange(9):
            case 8:  # two tensors under each other's names
                other = rng.choice([key for key in header if key != "__metadata__"])
                header[key], header[other] = header[other], header[key]
            case 0:
                header[rng.choice(KEYS)] = header.pop(key)
            case 1:
                header.pop(key)
            case 2:
                header[key] = rng.choice(NASTY)
            case 3:
                header["__metadata__"] = rng.choice((*NASTY, {"a": rng.choice(NASTY)}, {rng.choice(KEYS): "x"}))
            case 4 if isinstance(header[key], dict):
                header[rng.choice(KEYS)] = copy.deepcopy(header[key])
            case _:
                if isinstance(header[key], dict) and {"data_offsets", "shape"} <= header[key].keys():
                    try:
                        lie(rng, header[key], entries)
                    except (KeyError, TypeError, ValueError):
                        continue  # it was changed before
    text = to_text(header)
    if rng.random() < 0.05:  # a name twice
        key = rng.choice(list(header))
        text = f"{text[:-1]}, {json.dumps(key)}: {to_text(rng.choice((header[key], *OTHERS)))}}}"
    if rng.random() < 0.02:
        return text.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32")))
    return (rng.choice(("", "", "", " ", "\n")) + text + rng.choice(("", " " * 50, "\0", "x"))).encode()


def change_length(rng: random.Random, length: int) -> int:
    """What a file says its header's length is."""
    if rng.random() < 0.9:
        return length
    lies = (0, 1, length - 1, length + 1, length + 100, 2**31, 2**63, 2**64 - 1, 100_000_000, 99_999_999)
    return max(rng.choice(lies), 0)


def write_file(rng: random.Random, path: Path, header: bytes, payload: int) -> None:
    """A safetensors file whose data are zeros, of which the disk holds none."""
    if rng.random() < 0.05:
        payload = max(payload + rng.choice((-payload, -1, 1, 1000, 10**9)), 0)
    start = change_length(rng, len(header)).to_bytes(8, "little") + header
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + payload)


def parts_of(path: Path) -> tuple[dict, int]:
    """A real file's header and the bytes behind it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), len(data) - 8 - length
