"""Kernels of a layer that hold the bodies of its parts: written here of kernels made for the purpose, and executed."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from tests.support.helpers import nvrtc_missing
from tvm_orient.codegen.cuda.cuda_text import Definition
from tvm_orient.codegen.cuda.layer_source import PartKernel, layer_kernel
from tvm_orient.codegen.cuda.ptx import Kernel, SharedArray, kernels
from tvm_orient.sass import cubin
from tvm_orient.sass.executor import ORDERS, execute
from tvm_orient.toolchain import nvrtc

compiles = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")
ARCH = "sm_90a"
NAMES = ("x", "y", "n")
PARAMETERS = "float* __restrict__ x_ptr, float* __restrict__ y_ptr, int n"
BLOCK = 64  # threads of the largest part
EACH = 4 * BLOCK  # values that a part has

# of a block b of t threads; each reads values of its own part, and writes as many
PLAIN = "y[b * {size} + t] = x[b * {size} + t] * n;"
STAGED = "__shared__ float s[{size}]; s[t] = x[b * {size} + t]; __syncthreads(); y[b * {size} + t] = s[{size} - 1 - t];"
LOOP = "float v = 0; for (int i = 0; i < n; ++i) {{ if (x[b * {size} + t] > i) v += i; }} y[b * {size} + t] = v;"
# more registers and predicates than the compiler gives the statement
MANY = (
    "float v[24]; for (int i = 0; i < 24; ++i) v[i] = x[(t + i) % {size}]; "
    "float m = 0; for (int i = 0; i < 24; ++i) m = v[i] > m ? v[i] : m - v[i]; y[b * {size} + t] = m;"
)


def alone(text: str, size: int) -> str:
    """CUDA source of a part with this body."""
    head = f'extern "C" __global__ void __launch_bounds__({size}) main_kernel({PARAMETERS.replace("_ptr", "")})'
    return f"{head} {{ const int t = threadIdx.x, b = blockIdx.x; {text.format(size=size)} }}"


@functools.cache
def body(text: str, size: int = BLOCK) -> Kernel:
    """The kernel of a part with this body, as its PTX has it."""
    (found,) = kernels(nvrtc.compile_ptx(alone(text, size), ARCH))
    return found


def part(kernel: Kernel, place: int, tasks: str = "n", size: int = BLOCK, name: str = "") -> PartKernel:
    """That kernel as the place-th of a layer, whose values begin at as many times EACH; those of one name are the same part."""
    return PartKernel(name or f"part {place}", kernel, tasks, size, NAMES, place, 0, {"x": EACH, "y": EACH})


def source_of(parts: Sequence[PartKernel], bound: int = BLOCK) -> str:
    return layer_kernel(Definition("main_kernel", bound, PARAMETERS, ""), parts)


def ran(source: str, blocks: int, n: int, places: int, threads: int = BLOCK, order: str = "ascending") -> tuple[Any, Any]:
    """x, and what the kernel makes of y, both (places, EACH)."""
    (kernel,) = cubin.kernels(nvrtc.compile_cubin(source, ARCH))
    x = np.random.default_rng(0).uniform(0, 4, places * EACH).astype(np.float32)
    y = np.full_like(x, -1)
    execute(kernel, blocks, threads, [x, y, n], order)
    return x.reshape(places, EACH), y.reshape(places, EACH)


def expected(text: str, x: Any, n: int, size: int = BLOCK) -> Any:
    """What n blocks of a part make of its values, (EACH,); -1 where nothing is written."""
    found = np.full(EACH, -1, np.float32)
    given = x[: n * size].reshape(n, size)
    if text == PLAIN:
        found[: n * size] = (given * n).ravel()
    elif text == STAGED:
        found[: n * size] = given[:, ::-1].ravel()
    elif text == LOOP:
        found[: n * size] = sum(np.where(given > i, i, 0) for i in range(n)).ravel()
    else:
        m = np.zeros(size, np.float32)
        for i in range(24):
            value = x[(np.arange(size) + i) % size]
            m = np.where(value > m, value, m - value)
        found[: n * size] = np.tile(m, n)
    return found


@compiles
@pytest.mark.parametrize("texts", [(PLAIN, STAGED), (STAGED, LOOP, MANY), (MANY, MANY), (LOOP, PLAIN, STAGED, MANY, LOOP)])
def test_every_block_runs_the_body_of_its_part(texts: tuple[str, ...]) -> None:
    """With operands that lie at places of their own, and in every order of warps."""
    source, n = source_of([part(body(text), place) for place, text in enumerate(texts)]), 3
    for order in ORDERS:
        x, y = ran(source, n * len(texts), n, len(texts), order=order)
        for place, text in enumerate(texts):
            np.testing.assert_allclose(y[place], expected(text, x[place], n), rtol=1e-6, err_msg=f"{place} {order}")


@compiles
@pytest.mark.parametrize("sizes", [(64, 32), (32, 64), (40, 64, 33)])
def test_threads_that_a_part_lacks_do_nothing_and_hold_no_barrier_up(sizes: tuple[int, ...]) -> None:
    source = source_of([part(body(STAGED, size), place, size=size) for place, size in enumerate(sizes)])
    for size in sizes:
        assert source.count(f"if (threadIdx.x >= {size}) return;\nasm volatile(") == (size < BLOCK) * sizes.count(size)
    x, y = ran(source, 2 * len(sizes), 2, len(sizes))
    for place, size in enumerate(sizes):
        np.testing.assert_array_equal(y[place], expected(STAGED, x[place], 2, size))


@compiles
@pytest.mark.parametrize("texts", [(STAGED, STAGED), (STAGED, MANY, STAGED, LOOP, MANY)])
def test_a_part_that_stands_several_times_has_one_body(texts: tuple[str, ...]) -> None:
    source, n = source_of([part(body(text), place, name=text) for place, text in enumerate(texts)]), 3
    assert source.count("tvm_orient_task, %0") == len(set(texts))
    x, y = ran(source, n * len(texts), n, len(texts))
    for place, text in enumerate(texts):
        np.testing.assert_allclose(y[place], expected(text, x[place], n), rtol=1e-6, err_msg=str(place))


@compiles
@pytest.mark.parametrize(("tasks", "counts"), [(("2", "n", "1"), (2, 3, 1)), (("n * 1 + 1", "1", "n"), (4, 1, 3))])
def test_parts_of_several_numbers_of_blocks(tasks: tuple[str, ...], counts: tuple[int, ...]) -> None:
    source = source_of([part(body(STAGED), place, one) for place, one in enumerate(tasks)])
    x, y = ran(source, sum(counts), 3, len(tasks))
    for place, count in enumerate(counts):
        np.testing.assert_array_equal(y[place], expected(STAGED, x[place], count))


# the compiler numbers the registers of a statement's operands as it likes; a body that declares the same names must not take them for its own
HOLDING = """	.reg .b32 	%r<64>;
	.reg .b64 	%rd<64>;
	.reg .f32 	%f<8>;
	.reg .pred 	%p<8>;
	mov.u32 	%r1, 7;	mov.u32 	%r2, 7;	mov.u32 	%r3, 7;	mov.u32 	%r4, 7;	mov.u32 	%r5, 7;
	mov.u64 	%rd1, 0;	mov.u64 	%rd2, 0;	mov.u64 	%rd3, 0;	mov.u64 	%rd4, 0;	mov.u64 	%rd5, 0;
	mov.u32 	%r10, %ctaid.x;
	ld.param.u64 	%rd10, [main_kernel_param_0];
	ld.param.u64 	%rd11, [main_kernel_param_1];
	mov.u32 	%r11, %tid.x;
	mad.lo.u32 	%r12, %r10, 64, %r11;
	mul.wide.u32 	%rd12, %r12, 4;
	add.s64 	%rd13, %rd10, %rd12;
	add.s64 	%rd14, %rd11, %rd12;
	ld.global.f32 	%f1, [%rd13];
	st.global.f32 	[%rd14], %f1;
	ret;
"""


@compiles
def test_registers_of_a_body_take_none_of_the_operands() -> None:
    """It writes all names that an operand could have before it reads what it is given."""
    held = Kernel("main_kernel", HOLDING, ())
    x, y = ran(source_of([part(held, 0), part(held, 1), part(held, 2)]), 6, 2, 3)
    np.testing.assert_array_equal(y[:, : 2 * BLOCK], x[:, : 2 * BLOCK])
    assert (y[:, 2 * BLOCK :] == -1).all()


def test_no_operand_is_named_where_a_body_declares_its_registers() -> None:
    source = source_of([part(Kernel("main_kernel", HOLDING, ()), place) for place in range(2)])
    for block in re.findall(r'"\{\\n"\n(?:(?!"\}).*\n)*?"\{\\n"\n((?:(?!"\}).*\n)*)"\}', source):
        assert ".reg .b32" in block
        assert not re.search(r"(?<!%)%\d", block)
    assert len(re.findall(r"mov\.u32 tvm_orient_task, %0;", source)) == 2


@compiles
def test_labels_of_a_body_that_stands_twice() -> None:
    source = source_of([part(body(LOOP), place) for place in range(6)])
    labels = re.findall(r'^"(\$L\w+):', source, re.M)
    assert len(labels) == len(set(labels)) >= 6
    x, y = ran(source, 6 * 2, 2, 6)
    for place in range(6):
        np.testing.assert_allclose(y[place], expected(LOOP, x[place], 2))


# ---- shared memory ------------------------------------------------------------------------------


def shared(*arrays: SharedArray) -> PartKernel:
    return PartKernel(f"of {arrays}", Kernel("main_kernel", "\tret;\n", arrays), "n", BLOCK, NAMES, 1, 0, {"x": 1})


def declared(source: str) -> Mapping[str, tuple[int, int]]:
    """Alignment and size of each array that a kernel declares, by name."""
    return {name: (int(alignment), int(size)) for alignment, name, size in re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]", source)}


def test_parts_have_the_shared_memory_of_the_largest_in_common() -> None:
    """Whatever their arrays are called: no two parts run in one block, and the model of GPUs counts on it."""
    source = source_of([shared(SharedArray("w", 16, 60), SharedArray("x", 64, 8)), shared(SharedArray("x", 4, 512)), shared(SharedArray("z", 8, 24))])
    assert declared(source) == {"tvm_orient_shared": (64, 512)}
    assert declared(source_of([shared(), shared()])) == {}


# two arrays, one of them as registers are called, which is read from before its start; both lie elsewhere than those of another part
SEVERAL = (
    "__shared__ float s[{size} + 3]; __shared__ float r[{size}]; s[t + 3] = x[b * {size} + t]; r[t] = x[b * {size} + t]; __syncthreads();"
    " y[b * {size} + t] = s[{size} + 2 - t] + (r + n)[{size} - 1 - t - n] * 2;"
)


@compiles
def test_several_arrays_of_several_parts() -> None:
    source = source_of([part(body(text), place) for place, text in enumerate((SEVERAL, STAGED, SEVERAL))])
    x, y = ran(source, 6, 2, 3)
    np.testing.assert_allclose(y[1], expected(STAGED, x[1], 2))
    for place in (0, 2):
        staged = expected(STAGED, x[place], 2)
        np.testing.assert_allclose(y[place], np.where(staged == -1, -1, staged * 3), rtol=1e-6)


@compiles
@pytest.mark.parametrize("offset", ["+4", "+-4", ""])
def test_the_assembler_takes_places_in_shared_memory(offset: str) -> None:
    arrays = (SharedArray("before", 16, 32), SharedArray("own", 16, 32))
    text = f"\tld.param.u64 %rd1, [main_kernel_param_1];\n\tmov.u32 %r1, own;\n\tst.shared.u32 [own{offset}], %r1;\n\tst.global.u32 [%rd1], %r1;\n\tret;\n"
    held = Kernel("main_kernel", f"\t.reg .b32 %r<4>;\n\t.reg .b64 %rd<4>;\n{text}", arrays)
    (kernel,) = cubin.kernels(nvrtc.compile_cubin(source_of([part(held, 0), part(held, 1)]), ARCH))
    assert kernel.count("STS") == 2


@compiles
def test_shared_memory_is_that_of_the_largest_part() -> None:
    (one,) = cubin.kernels(nvrtc.compile_cubin(source_of([part(body(STAGED, 64), 0), part(body(STAGED, 48), 1, size=48)]), ARCH))
    (alone,) = cubin.kernels(nvrtc.compile_cubin(source_of([part(body(STAGED, 64), 0)]), ARCH))
    assert one.shared == alone.shared


# ---- one part -----------------------------------------------------------------------------------


@compiles
@pytest.mark.parametrize("text", [PLAIN, STAGED, LOOP, MANY])
def test_a_part_alone_is_its_body_and_nothing_else(text: str) -> None:
    """No search, no operands, no other names: the machine code is that of the source that the PTX was made of."""
    source = source_of([part(body(text), 0)])
    assert "tvm_orient" not in source
    assert "if (" not in source
    (one,) = cubin.kernels(nvrtc.compile_cubin(source, ARCH))
    (other,) = cubin.kernels(nvrtc.compile_cubin(alone(text, BLOCK), ARCH))
    assert one.code == other.code


@compiles
def test_a_part_alone_whose_addresses_are_moved() -> None:
    x, y = ran(source_of([part(body(STAGED), 1)]), 2, 2, 2)
    assert (y[0] == -1).all()
    np.testing.assert_array_equal(y[1], expected(STAGED, x[1], 2))
