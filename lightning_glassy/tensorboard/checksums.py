"""The checksums of event files, by NumPy.

Each event in an event file has a checksum, CRC-32C. TensorBoard computes it byte by byte in Python, in 0.1 microseconds
a byte. The record of a network with 500 groups would stop a training for a second.

CRC-32C is linear: the checksum of a block is the exclusive or of one number for each byte, which depends on the byte
and on its place (R. N. Williams, A painless guide to CRC error detection algorithms, 1993). The numbers are in a table,
so that NumPy finds the checksums of all blocks at once.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # of Castagnoli, with its bits reversed
_BLOCK = 512  # bytes
_AT_ONCE = 128  # blocks, which fit into the cache with their numbers
_FEW = 256  # bytes, for which TensorBoard's own code is as fast

_PLACES = 256 * np.arange(_BLOCK)


@functools.cache
def _table() -> NDArray[np.uint32]:
    """Return the number for each place in a block and each byte, uint32 ``[256 * _BLOCK]``."""
    table = np.zeros((_BLOCK, 256), dtype=np.uint32)
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = (last >> np.uint32(1)) ^ (last & np.uint32(1)) * np.uint32(_POLYNOMIAL)
    table[-1] = last
    for place in reversed(range(_BLOCK - 1)):
        after = table[place + 1]
        table[place] = (after >> np.uint32(8)) ^ last[after & np.uint32(255)]
    return table.ravel()


@functools.cache
def _first() -> list[list[int]]:
    """Return the numbers for the first four places in a block. They move a checksum past the block."""
    return _table()[: 4 * 256].reshape(4, 256).tolist()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of some bytes.

    Example:
        >>> hex(crc32c(b"123456789"))
        '0xe3069283'
    """
    # The register begins with ones, which is the same as other first four bytes. Zeros before the bytes change nothing.
    start = bytes(255 ^ byte for byte in data[:4])
    if len(data) < 4:
        register = int.from_bytes(start, "little") ^ (0xFFFFFFFF << 8 * len(data) & 0xFFFFFFFF)
        for _ in range(8 * len(data)):
            register = (register >> 1) ^ (register & 1) * _POLYNOMIAL
        return register ^ 0xFFFFFFFF
    padded = b"".join([bytes(-len(data) % _BLOCK), start, memoryview(data)[4:]])
    blocks = np.frombuffer(padded, dtype=np.uint8).reshape(-1, _BLOCK)
    (a, b, c, d), register = _first(), 0
    for i in range(0, len(blocks), _AT_ONCE):
        numbers = _table().take(blocks[i : i + _AT_ONCE] + _PLACES)
        for number in np.bitwise_xor.reduce(numbers, axis=1).tolist():
            register = a[register & 255] ^ b[register >> 8 & 255] ^ c[register >> 16 & 255] ^ d[register >> 24] ^ number
    return register ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """Return the checksum in an event file: the CRC-32C, rotated and shifted."""
    found = crc32c(data)
    return (((found >> 15) | (found << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def quicken() -> None:
    """Let the writers of TensorBoard compute the checksums of long events by :func:`masked_crc32c`."""
    from tensorboard.summary.writer import record_writer

    original = getattr(record_writer, "masked_crc32c", None)
    if original is None or getattr(original, "_is_quick", False):
        return

    def checksum(data: bytes) -> int:
        return original(data) if len(data) < _FEW else masked_crc32c(data)

    checksum._is_quick = True  # type: ignore[attr-defined]
    record_writer.masked_crc32c = checksum
