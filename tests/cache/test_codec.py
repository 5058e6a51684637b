from __future__ import annotations

import gzip
import struct
import zlib

import blosc2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.data import DataLoader

from navsim_recogdrive.cache import codec
from navsim_recogdrive.cache.codec import HEADER_BYTES, MODES, PayloadInfo, decode, describe, encode
from navsim_recogdrive.cache.stored import DamagedHiddenState

# Patterns that arithmetic would lose: both zeros, subnormals, the smallest normal and the largest finite numbers.
BF16_EXTREMES = [0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x0080, 0x7F7F, 0xFF7F, 0x3F80, 0xBF81]
FP32_EXTREMES = [bits << 16 for bits in BF16_EXTREMES] + [0x00000001, 0x807FFFFF, 0x7F7F7FFF, 0x3F800001]
EXTREMES = {torch.bfloat16: BF16_EXTREMES, torch.float32: FP32_EXTREMES}
HEADER = "<4sHBIIIQ"


def _rows(length: int = 40, features: int = 8, padding_rows: int = 9, dtype: torch.dtype = torch.bfloat16):
    rows = torch.randn(length, features, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows[:padding_rows] = rows[:1].clone()
    return rows


def _equal_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first.view(torch.uint8), second.view(torch.uint8))


@st.composite
def hidden_states(draw, dtype: torch.dtype):
    """Any finite values, any shape, any number of padding rows; and that number."""
    bits, integers = (16, np.uint16) if dtype == torch.bfloat16 else (32, np.uint32)
    exponent = 0xFF << (bits - 9)
    finite = st.integers(0, 2**bits - 1).filter(lambda value: value & exponent != exponent)
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 5)))
    values = draw(hnp.arrays(integers, shape, elements=st.sampled_from(EXTREMES[dtype]) | finite))
    rows = torch.from_numpy(values.copy()).view(dtype)
    padding_rows = draw(st.integers(0, shape[0]))
    rows[:padding_rows] = rows[:1].clone()
    return rows, padding_rows


@given(hidden_states(torch.bfloat16), st.sampled_from(["bf16", "fp32"]))
@settings(max_examples=200, deadline=None)
def test_bf16_rows_come_back_bit_by_bit(state, mode: str) -> None:
    rows, padding_rows = state
    restored = decode(encode(rows, padding_rows=padding_rows, mode=mode))
    assert _equal_bits(restored, rows if mode == "bf16" else rows.float())


@given(hidden_states(torch.float32))
@settings(max_examples=100, deadline=None)
def test_fp32_rows_come_back_bit_by_bit(state) -> None:
    rows, padding_rows = state
    assert _equal_bits(decode(encode(rows, padding_rows=padding_rows, mode="fp32")), rows)


@given(hidden_states(torch.bfloat16))
@settings(max_examples=200, deadline=None)
def test_int8_error_is_bounded(state) -> None:
    rows, padding_rows = state
    restored = decode(encode(rows, padding_rows=padding_rows, mode="int8"))
    assert restored.dtype == torch.bfloat16
    assert _equal_bits(restored[:padding_rows], rows[:padding_rows])
    exact, found = rows[padding_rows:].double(), restored[padding_rows:].double()
    if not len(exact):
        return
    half = (exact.abs().amax(dim=0) / 127).clamp(min=2.0**-126) / 2
    float32_rounding = 1 + 1e-4
    assert ((found - exact).abs() <= (half + 2**-8 * (exact.abs() + half)) * float32_rounding).all()
    largest = exact.abs().amax(dim=0)
    normal = largest >= 127 * 2.0**-126
    assert torch.equal(found.abs().amax(dim=0)[normal], largest[normal])


def test_int8_rounds_half_to_even_with_one_scale_per_channel() -> None:
    content = torch.tensor([[127.0, 0.0, -1016.0], [0.5, 0.0, 4.0], [1.5, -0.0, 12.0], [-2.5, 0.0, 19.0]])
    restored = decode(encode(content, padding_rows=0, mode="int8"))
    expected = torch.tensor([[127.0, 0.0, -1016.0], [0.0, 0.0, 0.0], [2.0, 0.0, 16.0], [-2.0, 0.0, 16.0]])
    assert torch.equal(restored, expected.bfloat16())


def test_an_outlier_channel_or_the_padding_does_not_coarsen_the_others() -> None:
    rows = _rows(length=300)
    rows[:, 3] *= 10_000
    rows[:9] = 1e6
    restored = decode(encode(rows, padding_rows=9, mode="int8"))
    others = [0, 1, 2, 4, 5, 6, 7]
    assert (restored[9:, others] - rows[9:, others]).abs().max() < 0.03


@pytest.mark.parametrize("mode", ["bf16", "int8"])
def test_float32_rows_are_rounded_to_bf16(mode: str) -> None:
    rows = _rows(dtype=torch.float32)
    expected = encode(rows.bfloat16(), padding_rows=9, mode=mode)
    assert encode(rows, padding_rows=9, mode=mode) == expected


@pytest.mark.parametrize("mode", MODES)
def test_several_blocks_and_a_rest(mode: str) -> None:
    # More than two blocks of the compressor and of dequantisation, none of them full at the end.
    rows = _rows(length=1301, features=1000, padding_rows=2)
    restored = decode(encode(rows, padding_rows=2, mode=mode))
    tolerance = 0.03 if mode == "int8" else 0.0
    assert (restored.float() - rows.float()).abs().max() <= tolerance


@pytest.mark.parametrize("mode", MODES)
def test_a_payload_is_small_and_gzip_finds_nothing_left(mode: str) -> None:
    rows = _rows(length=800, features=256, padding_rows=400)
    payload = encode(rows, padding_rows=400, mode=mode)
    assert len(payload) < {"bf16": 0.72, "int8": 0.5, "fp32": 0.72}[mode] * rows[400:].nbytes
    assert len(gzip.compress(payload, 1)) > 0.985 * len(payload)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["transposed", "strided", "trainable"])
def test_rows_of_any_memory_layout(layout: str, mode: str) -> None:
    rows = {
        "transposed": _rows(8, 40, 0).T,
        "strided": _rows(80, 8, 0)[::2],
        "trainable": _rows(dtype=torch.float32, padding_rows=0).requires_grad_(),
    }[layout]
    plain = rows.detach().clone(memory_format=torch.contiguous_format)
    assert encode(rows, padding_rows=0, mode=mode) == encode(plain, padding_rows=0, mode=mode)


def test_a_channel_of_zeros_has_a_scale_that_divides() -> None:
    payload = encode(torch.tensor([[0.0, 254.0], [-0.0, 1.0]]), padding_rows=0, mode="int8")
    assert struct.unpack_from("<2f", payload, HEADER_BYTES) == (2.0**-126, 2.0)


def test_a_decoded_tensor_owns_its_memory() -> None:
    payload = encode(_rows(), padding_rows=9, mode="bf16")
    decode(payload).zero_()
    assert _equal_bits(decode(payload), _rows())


def test_decoding_in_a_dataloader_worker() -> None:
    payloads = [encode(_rows(), padding_rows=9, mode=mode) for mode in ("bf16", "int8")]
    loader = DataLoader(payloads, batch_size=None, num_workers=1, collate_fn=decode)
    assert all(torch.equal(found, decode(payload)) for found, payload in zip(loader, payloads, strict=True))


# --------------------------------------------------------------------------------------------------- what the file says


@pytest.mark.parametrize("mode", MODES)
def test_describe_needs_the_header_only(mode: str) -> None:
    payload = encode(_rows(), padding_rows=9, mode=mode)
    expected = PayloadInfo(1, mode, length=40, features=8, padding_rows=9, payload_bytes=len(payload))
    assert describe(payload) == describe(payload[:HEADER_BYTES]) == expected


# Written by the first release: 2 padding rows of [1, -2] and content [[0.5, 3], [-0.25, 127]]. A cache is made once.
VERSION_1 = {
    "bf16": (
        "526348530100010400000002000000020000002c00000000000000d9a0ea01803f00c0050107020800000008000000280000"
        "0001000000000005000000000000000000003f404080befe42"
    ),
    "int8": (
        "52634853010002040000000200000002000000300000000000000077e77e36803f00c00402813b0000803f05010701040000"
        "000400000024000000000000000000050000000000000000007f03c07f"
    ),
    "fp32": (
        "526348530100030400000002000000020000003800000000000000471fd95f0000803f000000c00501070410000000100000"
        "0030000000010000000000050000000000000000000000003f00004040000080be0000fe42"
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_payloads_of_version_1_stay_readable(mode: str) -> None:
    restored = decode(bytes.fromhex(VERSION_1[mode]))
    # 0.25 / (0.5 / 127) = 63.5 is rounded to 64, 3 / (127 / 127) is exact.
    quarter = -64 * 0.5 / 127 if mode == "int8" else -0.25
    expected = torch.tensor([[1, -2], [1, -2], [0.5, 3], [quarter, 127]])
    assert torch.equal(restored, expected.to(torch.float32 if mode == "fp32" else torch.bfloat16))


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("mode", MODES)
def test_a_flipped_bit_anywhere_is_detected(mode: str) -> None:
    payload = encode(_rows(6, 3, 2), padding_rows=2, mode=mode)
    for position in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(DamagedHiddenState):
            decode(damaged)


@pytest.mark.parametrize("mode", MODES)
def test_truncation_anywhere_is_detected(mode: str) -> None:
    payload = encode(_rows(6, 3, 2), padding_rows=2, mode=mode)
    for size in range(len(payload)):
        with pytest.raises(DamagedHiddenState, match="truncated"):
            decode(payload[:size])


def test_bytes_behind_the_payload_are_detected() -> None:
    payload = encode(_rows(), padding_rows=9, mode="bf16")
    with pytest.raises(DamagedHiddenState, match=f"expected {len(payload)} bytes, found {len(payload) + 1}"):
        decode(payload + b"\0")


def _with_header(payload: bytes, **changes: object) -> bytes:
    """``payload`` with other header fields and a checksum that fits them."""
    names = ("magic", "version", "mode", "length", "features", "padding_rows", "body_bytes")
    header = dict(zip(names, struct.unpack_from(HEADER, payload), strict=True))
    body = changes.pop("body", payload[HEADER_BYTES:])
    header.update(body_bytes=len(body), **changes)
    fields = struct.pack(HEADER, *header.values())
    return fields + struct.pack("<I", zlib.crc32(fields + body)) + body


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"\x1f\x8b\x08\x00"}, "not a hidden state"),
        ({"version": 2}, "of cache format 2, this package reads format 1: upgrade"),
        ({"mode": 0}, "damaged header"),
        ({"mode": 4}, "damaged header"),
        ({"padding_rows": 41}, "damaged header"),
        ({"length": 0, "padding_rows": 0}, "damaged header"),
        ({"features": 0}, "damaged header"),
    ],
)
def test_a_header_that_is_not_ours_is_refused(changes: dict[str, object], message: str) -> None:
    payload = _with_header(encode(_rows(), padding_rows=9, mode="bf16"), **changes)
    for reader in (decode, describe):
        with pytest.raises(DamagedHiddenState, match=message):
            reader(payload)


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("bf16", {"length": 41}),
        ("bf16", {"features": 2**32 - 1}),
        ("bf16", {"padding_rows": 40}),
        ("bf16", {"padding_rows": 0}),
        ("bf16", {"body": b""}),
        ("bf16", {"body": bytes(16)}),
        ("bf16", {"body": bytes(16) + b"not a chunk of the compressor at all"}),
        ("bf16", {"body": bytes(16) + blosc2.compress2(bytes(31 * 8 * 2), nthreads=1) + b"\0"}),
        ("fp32", {"mode": 1}),
        ("int8", {"mode": 1}),
        ("int8", {"padding_rows": 40}),
        ("int8", {"body": bytes(16 + 31)}),
    ],
)
def test_content_that_does_not_fit_its_header_is_refused(mode: str, changes: dict[str, object]) -> None:
    payload = _with_header(encode(_rows(), padding_rows=9, mode=mode), **changes)
    with pytest.raises(DamagedHiddenState, match="does not fit its header"):
        decode(payload)


# --------------------------------------------------------------------------------------------------------- wrong inputs


def test_the_header_helper_changes_nothing_by_itself() -> None:
    payload = encode(_rows(), padding_rows=9, mode="bf16")
    assert _with_header(payload) == payload
    assert struct.calcsize(HEADER) + 4 == HEADER_BYTES


@pytest.mark.parametrize(
    ("rows", "padding_rows", "mode", "message"),
    [
        (_rows(), 9, "fp16", "unknown cache mode 'fp16', expected one of bf16, int8, fp32"),
        (_rows()[0], 0, "bf16", r"matrix .* shape \[8\]"),
        (_rows()[None], 0, "bf16", r"matrix .* shape \[1, 40, 8\]"),
        (_rows()[:0], 0, "bf16", r"matrix .* shape \[0, 8\]"),
        (_rows(), 41, "bf16", "41 padding rows"),
        (_rows(), -1, "bf16", "-1 padding rows"),
        (_rows(dtype=torch.float16), 9, "bf16", "found torch.float16"),
        (_rows().to("meta"), 9, "bf16", "on the CPU, found torch.bfloat16 meta"),
        (_rows(), 10, "bf16", "first 10 rows .* not one constant padding vector"),
    ],
)
def test_wrong_inputs_are_refused(rows: torch.Tensor, padding_rows: int, mode: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(rows, padding_rows=padding_rows, mode=mode)


def test_padding_rows_must_agree_in_the_sign_of_zero() -> None:
    rows = torch.zeros(3, 2)
    rows[1] = -0.0
    with pytest.raises(ValueError, match="not one constant padding vector"):
        encode(rows, padding_rows=2, mode="fp32")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("mode", MODES)
def test_values_that_are_not_finite_are_refused(dtype: torch.dtype, value: float, mode: str) -> None:
    rows = _rows(dtype=dtype)
    rows[[12, 33], 3] = value
    with pytest.raises(ValueError, match=r"not finite .*2 of 40 rows"):
        encode(rows, padding_rows=9, mode=mode)


def test_float32_that_bf16_cannot_hold_is_refused() -> None:
    rows = torch.full((2, 2), torch.finfo(torch.float32).max)
    assert torch.equal(decode(encode(rows, padding_rows=0, mode="fp32")), rows)
    for mode in ("bf16", "int8"):
        with pytest.raises(ValueError, match="not finite in torch.bfloat16"):
            encode(rows, padding_rows=0, mode=mode)


def test_modes_have_fixed_numbers() -> None:
    numbers = {mode: encode(_rows(), padding_rows=9, mode=mode)[6] for mode in MODES}
    assert numbers == {"bf16": 1, "int8": 2, "fp32": 3}
    assert codec.FORMAT_VERSION in codec.READABLE_VERSIONS
