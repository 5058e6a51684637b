"""The bytes of one hidden state: the constant padding row once, the content rows compressed, checksummed, versioned.

Hidden states are bf16. Their sign and mantissa bits are noise to any compressor, their exponents are not, so the
low and the high bytes are sorted apart (blosc2's byte shuffle) and zstd is left to find that only the high ones
compress. Measured on 2791 x 1536 activations, 8.6 MB, one core (``benchmarks/cache.py`` compares whole cache files):

=============================  ======  ========  =======
content rows compressed by     MB      write ms  read ms
=============================  ======  ========  =======
byte shuffle, zstd 1 (chosen)  5.9     15..20    4..5
byte shuffle, zstd 3           6.1     60        6
byte shuffle, lz4 1            8.2     7         2
bit shuffle, zstd 1            6.5     10        5
=============================  ======  ========  =======

Higher levels are worse because the matches that they look for are chance; keeping all exponent bits in one byte, or
the values of one channel together, gains less than 1 %. What leaves here cannot be compressed any further, and that is
as it should be: the gzip round it, NAVSIM's own, then stores it as it is and reads it in 7 ms, where lz4's output is
decoded symbol by symbol in 30 ms.

A payload is a header (``_FIELDS`` and a CRC-32, little endian), then the padding row where there is one, then for
``int8`` the ``features`` float32 scales, then one blosc2 chunk with the content rows; the last two only where there are
content rows. The CRC-32 covers all the rest of the payload.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import blosc2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_recogdrive.cache.stored import DamagedHiddenState

MODES = ("bf16", "int8", "fp32")
"""How the content rows are stored: bf16 without loss, int8 with one scale per channel, or fp32 without loss."""

FORMAT_VERSION = 1
"""The version that :func:`encode` writes."""

READABLE_VERSIONS = (1,)
"""The versions that :func:`decode` reads."""

_MAGIC = b"RcHS"
# Magic, version, mode, rows, features, padding rows, bytes after the header; the checksum follows.
_FIELDS = struct.Struct("<4sHBIIIQ")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
"""Bytes of a payload that :func:`describe` looks at."""

# Written into every payload: a number, once given, never means another mode.
_MODE_NUMBERS = {"bf16": 1, "int8": 2, "fp32": 3}
_MODE_OF_NUMBER = {number: mode for mode, number in _MODE_NUMBERS.items()}

_INT8_MAX = 127
# Below it float32 has no full precision, and a scale of zero would divide by zero.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
# Rows quantised or dequantised at once: their float32 values stay in the processor's cache.
_ROWS_AT_ONCE = 128
# Bytes of each byte plane that zstd sees at once. Larger gains nothing, smaller repeats its code tables.
_PLANE_BYTES = 1 << 19


@dataclass(frozen=True)
class PayloadInfo:
    """What the header of a payload says.

    Attributes:
        version: format version.
        mode: one of :data:`MODES`.
        length: rows of the hidden state, padding included.
        features: its columns.
        padding_rows: leading rows that are one constant vector.
        payload_bytes: size of the whole payload, header included.
    """

    version: int
    mode: str
    length: int
    features: int
    padding_rows: int
    payload_bytes: int


def encode(rows: Tensor, *, padding_rows: int, mode: str) -> bytes:
    """The payload that stores ``rows``.

    ``fp32`` keeps every bit of bf16 and of float32 rows. ``bf16`` and ``int8`` see float32 rows rounded to bf16, and
    ``bf16`` keeps every bit of that. ``int8`` stores channel ``d`` of the content rows as multiples, rounded half to
    even, of ``scale_d = max |x_d| / 127``, the maximum being over this sample. A value ``x`` comes back off by at most
    half a scale plus its own rounding to bf16, ``scale_d / 2 + 2**-8 * (|x| + scale_d / 2)``, up to the rounding of
    float32; the largest of a channel comes back exactly, zeros as +0. (No scale is below ``2**-126``, the smallest
    normal number.) The padding row is not quantised.

    Args:
        rows: ``[L, D]`` bf16 or float32, on the CPU.
        padding_rows: how many of the first rows are padding; all of them have the same bits in the stored dtype.
        mode: one of :data:`MODES`.

    Raises:
        ValueError: for another mode, dtype, device or shape, for values that are not finite in the dtype that
            :func:`decode` will return, or for padding rows that differ.
    """
    if mode not in MODES:
        raise ValueError(f"unknown cache mode {mode!r}, expected one of {', '.join(MODES)}")
    _check_matrix(rows, padding_rows)
    exact = rows.detach().to(_decoded_dtype(mode)).contiguous()
    _check_finite(exact)
    bits = _bits(exact)
    if padding_rows and (bits[:padding_rows] != bits[0]).any():
        raise ValueError(f"the first {padding_rows} rows of the hidden state are not one constant padding vector")
    parts = [bits[0].tobytes()] if padding_rows else []
    if padding_rows < len(rows):
        if mode == "int8":
            scales, steps = _quantise(exact[padding_rows:])
            parts += [scales.numpy().tobytes(), _compress(steps.numpy())]
        else:
            parts.append(_compress(bits[padding_rows:]))
    body_bytes = sum(map(len, parts))
    fields = _FIELDS.pack(
        _MAGIC, FORMAT_VERSION, _MODE_NUMBERS[mode], len(rows), rows.shape[1], padding_rows, body_bytes
    )
    checksum = zlib.crc32(fields)
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join([fields, _CHECKSUM.pack(checksum), *parts])


def decode(payload: bytes | bytearray | memoryview) -> Tensor:
    """The hidden state ``[L, D]`` that ``payload`` stores: float32 for mode ``fp32``, otherwise bf16.

    Raises:
        DamagedHiddenState: if the payload is no hidden state, is of another format version, is shorter or longer than
            its header says, or has a wrong checksum.
    """
    info = describe(payload)
    if len(payload) != info.payload_bytes:
        what = "truncated" if len(payload) < info.payload_bytes else "followed by bytes that do not belong to it"
        raise DamagedHiddenState(
            f"hidden state {what}: expected {info.payload_bytes} bytes, found {len(payload)}; "
            "the cache file is damaged, delete it and cache again"
        )
    view = memoryview(payload)
    (expected,) = _CHECKSUM.unpack(view[_FIELDS.size : HEADER_BYTES])
    if zlib.crc32(view[HEADER_BYTES:], zlib.crc32(view[: _FIELDS.size])) != expected:
        raise DamagedHiddenState(
            "hidden state with a wrong checksum: the cache file is damaged; delete it and cache again"
        )
    try:
        padding, scales, chunk = _split(info, view[HEADER_BYTES:])
        rows = torch.empty(info.length, info.features, dtype=_decoded_dtype(info.mode))
        bits = _bits(rows)
        if padding:
            bits[: info.padding_rows] = np.frombuffer(padding, dtype=bits.dtype)
        if scales:
            _dequantise(scales, chunk, rows[info.padding_rows :])
        elif chunk:
            blosc2.decompress2(chunk, dst=bits[info.padding_rows :], nthreads=1)
    except (ValueError, RuntimeError) as error:
        # The checksum is right, so these bytes are what was written: not by encode.
        raise DamagedHiddenState(
            f"hidden state whose content does not fit its header ({info.mode}, {info.length} x {info.features}, "
            f"{info.padding_rows} padding rows): {error}; delete the cache file and cache again"
        ) from error
    return rows


def describe(payload: bytes | bytearray | memoryview) -> PayloadInfo:
    """What the header of ``payload`` says; its first :data:`HEADER_BYTES` bytes are enough. Verifies no content.

    Raises:
        DamagedHiddenState: if this is no header, or one of a version or mode that this package does not read.
    """
    if len(payload) < HEADER_BYTES:
        raise DamagedHiddenState(
            f"hidden state truncated: {len(payload)} bytes, its header alone has {HEADER_BYTES}; "
            "the cache file is damaged, delete it and cache again"
        )
    magic, version, mode, length, features, padding_rows, body_bytes = _FIELDS.unpack_from(payload)
    if magic != _MAGIC:
        raise DamagedHiddenState(
            f"not a hidden state of navsim-recogdrive: expected {_MAGIC!r} in front, found {magic!r}; "
            "delete the cache file and cache again"
        )
    if version not in READABLE_VERSIONS:
        raise DamagedHiddenState(
            f"hidden state of cache format {version}, this package reads format "
            f"{', '.join(map(str, READABLE_VERSIONS))}: upgrade navsim-recogdrive, or cache the split again"
        )
    if mode not in _MODE_OF_NUMBER or not features or not length or padding_rows > length:
        raise DamagedHiddenState(
            f"hidden state with a damaged header (mode {mode}, {length} x {features}, {padding_rows} padding rows); "
            "delete the cache file and cache again"
        )
    return PayloadInfo(version, _MODE_OF_NUMBER[mode], length, features, padding_rows, HEADER_BYTES + body_bytes)


def _check_matrix(rows: Tensor, padding_rows: int) -> None:
    if rows.dtype not in (torch.bfloat16, torch.float32) or rows.device.type != "cpu":
        raise ValueError(f"a hidden state is stored from bf16 or float32 on the CPU, found {rows.dtype} {rows.device}")
    if rows.ndim != 2 or 0 in rows.shape or not 0 <= padding_rows <= len(rows):
        raise ValueError(
            f"a hidden state is a matrix [rows, features] with at most as many padding rows, found shape "
            f"{list(rows.shape)} and {padding_rows} padding rows"
        )


def _check_finite(rows: Tensor) -> None:
    # One pass, and no mask as large as the rows: aminmax hands on any NaN.
    if torch.isfinite(torch.stack(torch.aminmax(rows))).all():
        return
    bad = int((~torch.isfinite(rows)).any(dim=1).sum())
    raise ValueError(
        f"hidden states that are not finite in {rows.dtype} ({bad} of {len(rows)} rows); not cached. "
        "Check the VLM weights and agent.vlm.dtype (float16 overflows in InternVL; use bfloat16)."
    )


def _decoded_dtype(mode: str) -> torch.dtype:
    return torch.float32 if mode == "fp32" else torch.bfloat16


def _bits(rows: Tensor) -> NDArray[np.signedinteger]:
    """``rows`` as integers over the same memory: numpy has no bf16, and -0 differs from +0."""
    return rows.view(torch.int16 if rows.dtype == torch.bfloat16 else torch.int32).numpy()


def _quantise(content: Tensor) -> tuple[Tensor, Tensor]:
    """Scales ``[D]`` float32 and multiples ``[N, D]`` int8 of ``content`` ``[N, D]``."""
    scales = (content.abs().amax(dim=0).float() / _INT8_MAX).clamp(min=_SMALLEST_SCALE)
    steps = torch.empty(content.shape, dtype=torch.int8)
    quotients = torch.empty(_ROWS_AT_ONCE, content.shape[1])
    for target, source in zip(steps.split(_ROWS_AT_ONCE), content.split(_ROWS_AT_ONCE), strict=True):
        target.copy_(torch.div(source, scales, out=quotients[: len(source)]).round_())
    return scales, steps


def _dequantise(scales: memoryview, chunk: memoryview, content: Tensor) -> None:
    """Fill ``content`` ``[N, D]`` bf16."""
    steps = torch.empty(content.shape, dtype=torch.int8)
    blosc2.decompress2(chunk, dst=steps.numpy(), nthreads=1)
    scale = torch.from_numpy(np.frombuffer(scales, dtype=np.float32).copy())
    products = torch.empty(_ROWS_AT_ONCE, content.shape[1])
    for target, source in zip(content.split(_ROWS_AT_ONCE), steps.split(_ROWS_AT_ONCE), strict=True):
        target.copy_(torch.mul(source, scale, out=products[: len(source)]))


def _compress(content: NDArray[np.signedinteger]) -> bytes:
    chunk: bytes = blosc2.compress2(
        content,
        codec=blosc2.Codec.ZSTD,
        clevel=1,
        filters=[blosc2.Filter.SHUFFLE if content.itemsize > 1 else blosc2.Filter.NOFILTER],
        filters_meta=[0],
        typesize=content.itemsize,
        splitmode=blosc2.SplitMode.ALWAYS_SPLIT,
        blocksize=_PLANE_BYTES * content.itemsize,
        # DataLoader workers and caching processes are the parallelism.
        nthreads=1,
    )
    return chunk


def _split(info: PayloadInfo, body: memoryview) -> tuple[memoryview, memoryview, memoryview]:
    """Padding row, scales and chunk, each empty where it is absent, and of the sizes that ``info`` asks for."""
    content_rows = info.length - info.padding_rows
    row_bytes = info.features * _decoded_dtype(info.mode).itemsize
    padding_bytes = row_bytes if info.padding_rows else 0
    scale_bytes = 4 * info.features if info.mode == "int8" and content_rows else 0
    before = padding_bytes + scale_bytes
    chunk = body[before:]
    expected = content_rows * (info.features if info.mode == "int8" else row_bytes)
    found, chunk_bytes = blosc2.get_cbuffer_sizes(chunk)[:2] if chunk else (0, 0)
    if (found, before + chunk_bytes) != (expected, len(body)):
        raise ValueError(
            f"expected {expected} bytes of content compressed to {len(body) - before}, found {found} compressed to "
            f"{chunk_bytes}"
        )
    return body[:padding_bytes], body[padding_bytes:before], chunk
