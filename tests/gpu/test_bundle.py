"""What is copied to a GPU machine."""

import struct

import pytest
from cogvideox_fun.benchmarks.gpu import bundle

PTX, CUBIN = 1, 2


def entry(kind: int, capability: int, code: bytes) -> bytes:
    return struct.pack("<HHIQ", kind, 0x101, 64, len(code)) + struct.pack("<12xI32x", capability) + code


def fat_binary(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", bundle.FATBIN_MAGIC, 1, 16, len(body)) + body


def test_only_the_code_for_compute_capability_9_0_is_kept():
    other, wanted, ptx = b"8" * 24, b"9" * 40, b"p" * 16
    before = b"other code, and the magic by chance: " + struct.pack("<IHHQ", bundle.FATBIN_MAGIC, 7, 16, 8)
    library = before + 2 * fat_binary(entry(CUBIN, 80, other), entry(CUBIN, 90, wanted), entry(PTX, 90, ptx))
    kept = bundle.keep_sm_90(library + b"the end")
    gone = 2 * fat_binary(entry(CUBIN, 80, bytes(24)), entry(CUBIN, 90, wanted), entry(PTX, 90, bytes(16)))
    assert kept == before + gone + b"the end"
    with pytest.raises(ValueError, match=r"no GPU code for compute capability 9\.0"):
        bundle.keep_sm_90(fat_binary(entry(CUBIN, 80, other)))
