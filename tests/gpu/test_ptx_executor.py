"""The PTX executor itself: what it computes, and that it catches the faults it is there to catch."""

import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx import Memory, PtxError, Region, execute, parse
from ptx.arithmetic import bf16_from_f32, f32_from_bf16, fma_f32, multiply_high

THREADS = 32

REGISTERS = ".reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<20>; .reg .b64 %rd<20>;"

# %rd1 and %rd2 are x and y, %r1 the index of the thread in the grid, %r2 the number of elements,
# %rd3 = &x[i] and %rd4 = &y[i] for 32-bit elements.
PROLOGUE = """
    ld.param.u64 %rd1, [k_param_0];
    ld.param.u64 %rd2, [k_param_1];
    ld.param.u32 %r2, [k_param_2];
    mov.u32 %r3, %tid.x;
    mov.u32 %r4, %ctaid.x;
    mov.u32 %r5, %ntid.x;
    mad.lo.s32 %r1, %r4, %r5, %r3;
    mul.wide.u32 %rd5, %r1, 4;
    add.s64 %rd3, %rd1, %rd5;
    add.s64 %rd4, %rd2, %rd5;
    setp.ge.u32 %p1, %r1, %r2;
    @%p1 bra DONE;
"""

COPY = "ld.global.u32 %r6, [%rd3]; st.global.u32 [%rd4], %r6;"


def program(body, prologue=PROLOGUE, declarations=""):
    lines = body.replace(";", ";\n")
    return (
        ".version 8.0\n.target sm_90\n.address_size 64\n"
        ".visible .entry k(.param .u64 k_param_0, .param .u64 k_param_1, .param .u32 k_param_2)\n{\n"
        f"{REGISTERS}\n{declarations}\n{prologue}\n{lines}\nDONE:\nret;\n}}\n"
    )


def run(body, x, y, grid=1, count=None, **options):
    """Run a body on the bytes of two arrays; returns the memory."""
    regions = [
        Region(name, base, array.view(np.uint8).reshape(-1))
        for name, base, array in (("x", 0x100000, x), ("y", 0x200000, y))
    ]
    memory = Memory(regions)
    count = x.size if count is None else count
    arguments = [struct.pack("<Q", 0x100000), struct.pack("<Q", 0x200000), struct.pack("<I", count)]
    execute(parse(program(body, **options)), grid, THREADS, arguments, memory)
    return memory


def arrays(size=50):
    return np.arange(1, size + 1, dtype=np.uint32), np.zeros(size, np.uint32)


def test_a_correct_copy_passes_and_its_bytes_are_counted():
    x, y = arrays()
    memory = run(COPY, x, y, grid=2)
    np.testing.assert_array_equal(x, y)
    assert (memory.named("x")[0].bytes_read, memory.named("x")[0].bytes_written) == (200, 0)
    assert (memory.named("y")[0].bytes_read, memory.named("y")[0].bytes_written) == (0, 200)
    assert memory.named("y")[0].accesses == {("store", 4)}


@pytest.mark.parametrize(
    ("fault", "body", "message"),
    [
        ("one element too far", "ld.global.u32 %r6, [%rd3+4]; st.global.u32 [%rd4], %r6;", "load out of bounds"),
        ("before the buffer", "ld.global.u32 %r6, [%rd3+-4];", "load out of bounds"),
        ("a store past the end", "st.global.u32 [%rd4+4], %r1;", "store out of bounds"),
        ("two threads store one element", "and.b32 %r6, %r1, 62; mul.wide.u32 %rd6, %r6, 4; add.s64 %rd7, %rd2, %rd6;"
         "st.global.u32 [%rd7], %r1;", "y is written twice"),
        ("one thread stores twice", "st.global.u32 [%rd4], %r1; st.global.u32 [%rd4], %r1;", "y is written twice"),
        ("a vector on a scalar's boundary", "ld.global.v2.u32 {%r6, %r7}, [%rd3];", "misaligned load of 8 bytes"),
        ("a register nobody wrote", "st.global.u32 [%rd4], %r9;", "%r9 is read before it is written"),
        ("a register some threads did not write", "setp.lt.u32 %p2, %r1, 7; @%p2 mov.u32 %r6, %r1;"
         "st.global.u32 [%rd4], %r6;", "%r6 is read before it is written"),
        ("a predicate nobody wrote", "@%p5 st.global.u32 [%rd4], %r1;", "%p5 is read before it is written"),
        ("its own output is read back", "st.global.u32 [%rd4], %r1; ld.global.u32 %r6, [%rd4];",
         "y is read after this launch wrote it"),
        ("an unknown instruction", "tanh.approx.f32 %r6, %r1;", "unknown instruction"),
        ("an unknown modifier", "add.sat.s32 %r6, %r1, %r1;", ".sat is not supported"),
        ("a product that may be contracted", "mul.f32 %r6, %r1, %r1;", "may contract this"),
        ("a sum that may be contracted", "add.f64 %rd6, %rd5, %rd5;", "may contract this"),
        ("a flush to zero", "mul.rn.ftz.f32 %r6, %r1, %r1;", ".ftz is not supported"),
        ("an approximation", "sqrt.approx.f32 %r6, %r1;", ".approx is not supported"),
        ("a conversion without a rounding", "cvt.f32.u32 %r6, %r1;", "rounding must be named"),
        ("a division by zero", "div.u32 %r6, %r1, 0;", "division by zero"),
        ("a loop without end", "AGAIN: bra AGAIN;", "does not end"),
        ("an undeclared register", "mov.u32 %q1, %r1;", "%q1 is not declared"),
    ],
)  # fmt: skip
def test_faults_are_caught(fault, body, message, monkeypatch):
    monkeypatch.setattr("ptx.execution.MAX_STEPS", 1000)
    x, y = arrays(50)
    with pytest.raises(PtxError, match=message.replace(".", r"\.")):
        run(body, x, y, grid=2)


def test_a_mask_that_is_off_by_one_is_caught():
    x, y = arrays(50)
    with pytest.raises(PtxError, match="out of bounds: 4 bytes at offset 200, x has 200"):
        run(COPY, x, y, grid=2, prologue=PROLOGUE.replace("setp.ge.u32", "setp.gt.u32"))


def test_a_block_that_writes_what_another_reads_is_caught():
    # In place, but shifted by a block: thread i reads x[i] and writes x[i + 32], whose reader is the next block.
    body = "ld.global.u32 %r6, [%rd3]; st.global.u32 [%rd3+128], %r6;"
    with pytest.raises(PtxError, match="written by one block and read by another"):
        run(body, np.zeros(128, np.uint32), np.zeros(1, np.uint32), grid=3, count=96)


def test_in_place_is_allowed_to_the_owner():
    x = np.arange(64, dtype=np.uint32)
    run("ld.global.u32 %r6, [%rd3]; add.u32 %r6, %r6, 1; st.global.u32 [%rd3], %r6;", x, x[:1].copy(), grid=2)
    np.testing.assert_array_equal(x, np.arange(1, 65))


SHARED = ".shared .align 4 .b8 board[256];"
# Thread i of 64 writes board[i] and reads board[63 - i], another warp's.
EXCHANGE = """
    shl.b32 %r6, %r3, 2; mov.u32 %r7, board; add.u32 %r6, %r6, %r7; st.shared.u32 [%r6], %r1;
    BARRIER
    mov.u32 %r8, 63; sub.u32 %r8, %r8, %r3; shl.b32 %r8, %r8, 2; add.u32 %r8, %r8, %r7;
    ld.shared.u32 %r9, [%r8]; st.global.u32 [%rd4], %r9;
"""


def test_shared_memory_and_barriers(monkeypatch):
    monkeypatch.setattr(f"{__name__}.THREADS", 64)
    x, y = arrays(128)
    run(EXCHANGE.replace("BARRIER", "bar.sync 0;"), x, y, grid=2, declarations=SHARED)
    np.testing.assert_array_equal(y, np.concatenate([np.arange(63, -1, -1), np.arange(127, 63, -1)]))


def test_a_missing_barrier_is_caught(monkeypatch):
    monkeypatch.setattr(f"{__name__}.THREADS", 64)
    x, y = arrays(128)
    with pytest.raises(PtxError, match="before a barrier"):
        run(EXCHANGE.replace("BARRIER", ""), x, y, grid=2, declarations=SHARED)


def test_a_barrier_that_some_threads_miss_is_caught(monkeypatch):
    monkeypatch.setattr(f"{__name__}.THREADS", 64)
    x, y = arrays(64)
    body = "setp.lt.u32 %p2, %r1, 32; @%p2 bra ELSE; bar.sync 0; bra DONE; ELSE: bar.sync 0;"
    with pytest.raises(PtxError, match="different barriers"):
        run(body, x, y)


def test_local_memory_is_refused():
    with pytest.raises(PtxError, match="local memory"):
        parse(program(COPY, declarations=".local .align 8 .b8 depot[16];"))


def test_divergent_loops_meet_again():
    # y[i] = 0 + 1 + ... + i, then all threads add 1000 together.
    body = """
        mov.u32 %r6, 0; mov.u32 %r7, 0;
        LOOP: add.u32 %r6, %r6, %r7; add.u32 %r7, %r7, 1; setp.le.u32 %p2, %r7, %r1; @%p2 bra LOOP;
        add.u32 %r6, %r6, 1000; st.global.u32 [%rd4], %r6;
    """
    x, y = arrays(50)
    run(body, x, y, grid=2)
    i = np.arange(50)
    np.testing.assert_array_equal(y, i * (i + 1) // 2 + 1000)


def wrapped(value):
    return value & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("mul.hi.u32 %r7, %r6, 0xD2511F53", lambda v: v * 0xD2511F53 >> 32),
        ("mul.lo.s32 %r7, %r6, 7919", lambda v: wrapped(v * 7919)),
        ("shl.b32 %r7, %r6, 33", lambda v: 0),
        ("shr.u32 %r7, %r6, 5", lambda v: v >> 5),
        ("shr.s32 %r7, %r6, 40", lambda v: wrapped(-(v >> 31))),
        ("shf.l.wrap.b32 %r7, %r6, %r6, 7", lambda v: wrapped(v << 7 | v >> 25)),
        ("bfe.u32 %r7, %r6, 4, 9", lambda v: v >> 4 & 511),
        ("bfe.s32 %r7, %r6, 3, 1", lambda v: wrapped(-(v >> 3 & 1))),
        ("prmt.b32 %r7, %r6, 0, 0x0123", lambda v: int.from_bytes(v.to_bytes(4, "little"), "big")),
        ("lop3.b32 %r7, %r6, 255, 0xF0F0F0F0, 0x96", lambda v: v ^ 255 ^ 0xF0F0F0F0),
        ("div.s32 %r7, %r6, -7", lambda v: wrapped(-(signed(v) // 7) if signed(v) >= 0 else -signed(v) // 7)),
        ("rem.u32 %r7, %r6, 1000", lambda v: v % 1000),
        ("min.s32 %r7, %r6, 0", lambda v: wrapped(min(signed(v), 0))),
        ("selp.b32 %r7, 1, 0, %p1", lambda v: 0),
        ("neg.s32 %r7, %r6", lambda v: wrapped(-v)),
        ("not.b32 %r7, %r6", lambda v: wrapped(~v)),
    ],
)
def test_integer_instructions_agree_with_python(instruction, expected):
    x = np.random.default_rng(1).integers(0, 2**32, 64, dtype=np.uint32)
    x[:4] = 0, 1, 0x7FFFFFFF, 0x80000000
    y = np.zeros_like(x)
    run(f"ld.global.u32 %r6, [%rd3]; {instruction}; st.global.u32 [%rd4], %r7;", x, y, grid=2)
    assert y.tolist() == [expected(v) for v in x.tolist()]


def signed(value):
    return value - 2**32 if value >> 31 else value


@pytest.mark.parametrize("how", ["lt", "ltu", "eq", "equ", "ne", "neu", "nan", "num"])
def test_comparisons_of_nan(how):
    x, y = np.array([np.nan, 1.0], np.float32), np.full(2, 9, np.uint32)
    body = f"ld.global.u32 %r6, [%rd3]; setp.{how}.f32 %p2, %r6, 0f40000000; selp.b32 %r7, 1, 0, %p2;"
    run(body + "st.global.u32 [%rd4], %r7;", x, y)
    expected = {"lt": (0, 1), "ltu": (1, 1), "eq": (0, 0), "equ": (1, 0), "ne": (0, 1), "neu": (1, 1), "nan": (1, 0)}
    assert tuple(y) == expected.get(how, (0, 1))


def test_fma_rounds_once():
    rng = np.random.default_rng(2)
    a, b = (rng.normal(size=2000).astype(np.float32) for _ in "ab")
    c = (-a.astype(np.float64) * b).astype(np.float32) * rng.choice([1, 1 + 2**-12, 2**-30], 2000).astype(np.float32)
    # Halfway cases that rounding twice gets wrong: 1 + 2**-24 exactly between two floats, and a trace more.
    a[:2], b[:2], c[:2] = 1 + 2**-12, (1 + 2**-12, 1 - 2**-12), (2**-60, -(2**-60))
    for got, x, y, z in zip(fma_f32(a, b, c), a, b, c, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        near = [got, np.nextafter(got, np.float32(-np.inf)), np.nextafter(got, np.float32(np.inf))]
        errors = [abs(Fraction(float(v)) - exact) for v in near]
        assert errors[0] <= min(errors[1:])
    twice = (a * b).astype(np.float32) + c
    assert (twice != fma_f32(a, b, c)).sum() > 100


@pytest.mark.parametrize("dtype", [np.uint32, np.int32, np.uint64, np.int64])
def test_upper_halves_of_products(dtype):
    info = np.iinfo(dtype)
    rng = np.random.default_rng(4)
    a, b = (rng.integers(info.min, info.max, 1000, dtype=dtype, endpoint=True) for _ in "ab")
    a[:4], b[:4] = (info.min, info.max, info.min, 1), (info.min, info.max, info.max, info.max)
    bits = info.bits
    expected = [(int(x) * int(y) >> bits) for x, y in zip(a, b, strict=True)]
    assert multiply_high(a, b).tolist() == expected


def test_bfloat16_rounds_as_torch_does():
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint32)
    bits[:4] = 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x80000001
    values = bits.view(np.float32)
    finite = ~np.isnan(values)
    torchs = torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(bf16_from_f32(values)[finite], torchs[finite])
    assert np.isnan(f32_from_bf16(bf16_from_f32(values)))[~finite].all()


def test_packed_arithmetic_and_what_is_packed_with_nothing():
    """Blackwell's pairs: a part that nobody wrote may be packed and thrown away, and not used."""
    x = np.array([1.5, -2.25, 3.0, 0.1], np.float32)
    y = np.zeros_like(x)
    pack = "ld.global.u32 %r6, [%rd3]; mov.b64 %rd6, {%r6, %r9}; fma.rn.f32x2 %rd7, %rd6, %rd6, %rd6;"
    run(pack + "mov.b64 {%r7, _}, %rd7; st.global.u32 [%rd4], %r7;", x, y)
    exact = x.astype(np.float64) ** 2 + x
    np.testing.assert_array_equal(y, exact.astype(np.float32))
    for use in ("mov.b64 {_, %r7}, %rd7; st.global.u32 [%rd4], %r7;", "add.s64 %rd8, %rd7, 1;"):
        with pytest.raises(PtxError, match="before it is written"):
            run(pack + use, x, np.zeros_like(x))


def test_tables_of_targets():
    body = """
        T: .branchtargets A, B, C;
        ld.global.u32 %r6, [%rd3];
        brx.idx %r6, T;
        A: mov.u32 %r7, 10; bra END;
        B: mov.u32 %r7, 20; bra END;
        C: mov.u32 %r7, 30;
        END: st.global.u32 [%rd4], %r7;
    """
    x = np.array([2, 0, 1, 1, 2, 0], np.uint32)
    y = np.zeros_like(x)
    lines = program("").replace("DONE:", body + "\nDONE:")
    regions = [Region("x", 0x100000, x.view(np.uint8)), Region("y", 0x200000, y.view(np.uint8))]
    arguments = [struct.pack("<Q", 0x100000), struct.pack("<Q", 0x200000), struct.pack("<I", 6)]
    execute(parse(lines), 1, THREADS, arguments, Memory(regions))
    assert y.tolist() == [30, 10, 20, 20, 30, 10]
