"""Kernels read from PTX, and their bodies written as inline assembly: what is understood, and what is refused."""

from __future__ import annotations

import re

import pytest

from tests.support.helpers import nvrtc_missing
from tvm_orient.codegen.cuda.ptx import SHARED_MEMORY, Kernel, SharedArray, assembly, inlined, kernels, shared_places, with_task
from tvm_orient.errors import BuildFailed
from tvm_orient.toolchain import nvrtc

compiles = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")
HEAD = ".version 9.0\n.target sm_90a\n.address_size 64\n\n"
BODY = """	.reg .pred 	%p<2>;
	.reg .b32 	%r<4>;
	// demoted variable
	.shared .align 64 .b8 _ZZ11main_kernelE16stage_shared_ptr[640];
	ld.param.u64 	%rd1, [main_kernel_param_0];
	ld.param.u32 	%r1, [main_kernel_param_2];
	mov.u32 	%r2, %ctaid.x; // the block
	st.shared.u32 	[_ZZ11main_kernelE16stage_shared_ptr+4], %r1;
	@%p1 bra 	$L__BB0_2;
$L__BB0_2:
	ret;
"""


def text(body: str = BODY, name: str = "main_kernel", before: str = "") -> str:
    """PTX of one kernel of three parameters."""
    parameters = ",\n".join(f"\t.param .u{bits} {name}_param_{index}" for index, bits in enumerate((64, 64, 32)))
    return f"{HEAD}{before}\n.visible .entry {name}(\n{parameters}\n)\n.maxntid 56, 1, 1\n.minnctapersm 2\n{{\n{body}\n}}\n\n"


def test_a_kernel_is_read_whole() -> None:
    (found,) = kernels(text())
    assert found.name == "main_kernel"
    assert found.shared == (SharedArray("_ZZ11main_kernelE16stage_shared_ptr", 64, 640),)
    assert "//" not in found.body
    assert found.body.count(";") == BODY.count(";")


def test_several_kernels_in_their_order() -> None:
    second = text(BODY.replace("_ZZ11", "_ZZ13").replace("main_kernel", "main_kernel_1"), "main_kernel_1").removeprefix(HEAD)
    found = kernels(text() + second)
    assert [one.name for one in found] == ["main_kernel", "main_kernel_1"]
    assert [one.shared[0].symbol for one in found] == ["_ZZ11main_kernelE16stage_shared_ptr", "_ZZ13main_kernel_1E16stage_shared_ptr"]


@pytest.mark.parametrize(
    ("before", "line", "said"),
    [
        (".global .align 4 .b8 table[16] = {1, 2, 3,\n4};\n", "mov.u64 %rd4, table;", "uses table"),
        (".const .align 4 .f32 third = 0f3EAAAAAB;\n", "ld.const.f32 %f1, [third];", "uses third"),
        (".visible .const .align 4 .b8 weights[64];\n", "ld.const.f32 %f1, [weights+4];", "uses weights"),
        (".extern .shared .align 16 .b8 room[];\n", "mov.u32 %r3, room;", "uses room"),
        ("", "call.uni (retval0), helper, (param0);", "uses a function"),
        ("", "@%p1 call (retval0), helper, (param0);", "uses a function"),
        ("", "{ call %rd1, (param0), prototype_0; }", "uses a function"),
    ],
)
def test_what_stands_outside_a_kernel_is_refused(before: str, line: str, said: str) -> None:
    with pytest.raises(BuildFailed, match=f"a kernel in PTX must hold all that it uses, got main_kernel, which {said}: compile its layer as one source"):
        kernels(text(f"{BODY}\t{line}\n", before=before))
    if before:
        assert len(kernels(text(before=before))) == 1, "it is there, and not used"


@compiles
@pytest.mark.parametrize(
    ("before", "statement"),
    [
        ("__device__ float table[4] = {1, 2, 3, 4};", "y[threadIdx.x] = table[threadIdx.x % n];"),
        ("__constant__ float table[4];", "y[threadIdx.x] = table[threadIdx.x % n];"),
        ("__device__ __noinline__ float cube(float v) { return v * v * v; }", "y[threadIdx.x] = cube(x[threadIdx.x]);"),
        ("", "extern __shared__ float room[]; room[n] = 1; __syncthreads(); y[threadIdx.x] = room[threadIdx.x];"),
        ("", 'if (n == 3) printf("%d", n); y[0] = 1;'),
    ],
)
def test_what_a_compiler_puts_outside_a_kernel_is_refused(before: str, statement: str) -> None:
    source = f'{before}\nextern "C" __global__ void main_kernel(float* x, float* y, int n) {{ {statement} }}'
    with pytest.raises(BuildFailed, match="a kernel in PTX must hold all that it uses"):
        kernels(nvrtc.compile_ptx(source, "sm_90a"))


def test_a_body_in_another_kernel() -> None:
    (kernel,) = kernels(text())
    found = inlined(kernel, "entry", {0: "#3", 2: "tvm_orient_n"}, "p1")
    assert "ld.param.u64 %rd1, [entry_param_3];" in found
    assert "mov.u32 %r1, tvm_orient_n;" in found
    assert "main_kernel_param" not in found
    assert ".shared" not in found.replace("st.shared", "")
    assert f"[{SHARED_MEMORY}+0+4]" in found
    assert "_ZZ" not in found
    assert "bra \t$L__p1_0_2;\n$L__p1_0_2:" in found
    assert found.startswith("{\n")
    assert found.endswith("}\n")
    assert "mov.u32 \t%r2, the_task;" in with_task(found, "the_task")


def test_a_body_that_keeps_its_shared_memory() -> None:
    (kernel,) = kernels(text())
    found = inlined(kernel, "entry", {0: "#0", 2: "#2"}, "a", keep_shared=True)
    assert found.count("_ZZ11main_kernelE16stage_shared_ptr") == 2
    assert "tvm_orient" not in found


@pytest.mark.parametrize("symbols", [("x_shared_ptr", "shared_ptr"), ("own", "own_1"), ("r", "p")])
def test_a_symbol_that_ends_or_begins_as_another_or_as_a_register_is_another(symbols: tuple[str, str]) -> None:
    one, other = (f"_ZZ11main_kernelE{len(symbol)}{symbol}" for symbol in symbols)
    arrays = (SharedArray(one, 64, 16), SharedArray(other, 32, 16))
    body = f"\t.reg .b32 %r<4>;\n\tld.shared.f32 %f1, [{one}];\n\tld.shared.f32 %f2, [{other}+4];\n"
    found = inlined(Kernel("main_kernel", body, arrays), "entry", {}, "a")
    assert re.findall(r"\[(.*)\]", found) == [f"{SHARED_MEMORY}+0", f"{SHARED_MEMORY}+32+4"]
    assert ".reg .b32 %r<4>;" in found


@pytest.mark.parametrize(
    ("arrays", "places", "size"),
    [([], [], 0), ([(64, 640)], [0], 640), ([(16, 20), (64, 8), (4, 12)], [0, 64, 72], 84), ([(4, 4), (8, 8)], [0, 8], 16)],
)
def test_arrays_lie_one_after_the_other_each_aligned(arrays: list[tuple[int, int]], places: list[int], size: int) -> None:
    kernel = Kernel("main_kernel", "", tuple(SharedArray(f"a{i}", *one) for i, one in enumerate(arrays)))
    assert shared_places(kernel) == (places, size)


def test_labels_of_two_bodies_are_two() -> None:
    (kernel,) = kernels(text())
    one, other = (set(re.findall(r"^\$\w+", inlined(kernel, "entry", {0: "#0", 2: "#1"}, tag), re.M)) for tag in ("p1", "p11"))
    assert one
    assert not one & other


def test_assembly_is_text_of_strings() -> None:
    body = 'mov.u32 %r1, %0;\n\n  @%p1 bra $L__a;\n.file 1 "C:\\kernel.cu"\n'
    assert assembly(body, operands=False).splitlines() == ['"mov.u32 %r1, %0;\\n"', '"@%p1 bra $L__a;\\n"', '".file 1 \\"C:\\\\kernel.cu\\"\\n"']
    assert assembly(body, operands=True).splitlines()[:2] == ['"mov.u32 %%r1, %0;\\n"', '"@%%p1 bra $L__a;\\n"']
