"""Each pass over CUDA source: what it matches and what it leaves; and that a kernel is refused in which a pass misses what TIR promised it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.helpers import AHEAD, line, spec_of
from tvm_orient.codegen import names
from tvm_orient.codegen.cuda import passes
from tvm_orient.codegen.cuda.async_copy import asynchronous
from tvm_orient.codegen.cuda.batched_loads import batched
from tvm_orient.codegen.cuda.device_helpers import declared
from tvm_orient.codegen.cuda.group_branches import branches
from tvm_orient.codegen.cuda.packed_reads import by_words
from tvm_orient.codegen.cuda.predicated_loads import predicated
from tvm_orient.codegen.cuda.rewritten import Rewritten
from tvm_orient.compiler import library, lower
from tvm_orient.errors import BuildFailed
from tvm_orient.problem.device import arch_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.schedules import choices, registry
from tvm_orient.schedules.base import Template
from tvm_orient.schedules.choices import Choice
from tvm_orient.toolchain import tvm

GPU = arch_device("sm_90a")
HEAD = 'extern "C" __global__ void main_kernel(float* __restrict__ w_ptr, float* __restrict__ x_ptr, float* __restrict__ y_ptr, int n) {\n'
HALF_HEAD = HEAD.replace("float*", "half*")


def guarded(target: str, source: str, kind: str = "float", zero: str = "0x0p+0f/*0.000000e+00*/", name: str = "condval_1") -> str:
    """A load of what may lie outside the plane, as TVM prints it."""
    return f"  {kind} {name};\n  if ((1 <= i)) {{\n    {name} = {source};\n  }} else {{\n    {name} = {zero};\n  }}\n  {target} = {name};\n"


def left(change: Callable[[str], Rewritten], source: str) -> bool:
    """Whether a pass leaves a source as it is."""
    done = change(source)
    return done.source == source and done.places == 0


# ---- merge.branches -----------------------------------------------------------------------------


def test_branches_become_ifs() -> None:
    loops = "".join(f"  for (int tvm_orient_branch{end} = 0; tvm_orient_branch{end} < condval{end}; ++tvm_orient_branch{end}) {{\n  }}\n" for end in ("", "_1"))
    done = branches(HEAD + loops)
    assert done.places == 2
    assert "  if (condval_1) {\n    const int tvm_orient_branch_1 = 0;\n  }\n" in done.source
    assert "for (" not in done.source


def test_branches_leaves_other_loops() -> None:
    assert left(branches, HEAD + "  for (int tvm_orient_ahead = 0; tvm_orient_ahead < 4; ++tvm_orient_ahead) {\n  }\n")


# ---- halves.by_words ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["half", "nv_bfloat16"])
def test_by_words_reads_a_part_of_four(kind: str) -> None:
    reads = "  a = ((float)stage_shared_ptr[(cse_v1 + 6)]);\n  b = ((float)stage_shared_ptr[cse_v2]);\n  int cse_v2 = (cse_v1 + 4);\n"
    done = by_words(f"{HALF_HEAD}  __shared__ alignas(64) {kind} stage_shared_ptr[64];\n{reads}")
    assert done.places == 2
    assert "a = tvm_orient_value<2>(stage_shared_ptr + (cse_v1 + 4));" in done.source
    assert "b = tvm_orient_value<0>(stage_shared_ptr + (cse_v1 + 4));" in done.source
    assert done.source.count(f"tvm_orient_value(const {kind}* four) {{") == 1
    assert done.source.index("tvm_orient_value") < done.source.index(names.KERNEL_MARK)


def test_by_words_leaves_stages_of_float32_and_other_buffers() -> None:
    assert left(by_words, HALF_HEAD + "  __shared__ alignas(64) float stage_shared_ptr[64];\n  a = stage_shared_ptr[2];\n")
    assert left(by_words, HALF_HEAD + "  __shared__ alignas(64) half x_shared_ptr[64];\n  a = ((float)x_shared_ptr[2]);\n")


# ---- batches.batched ----------------------------------------------------------------------------


def turns(*lines: str, count: int = 20) -> str:
    """A loop of TVM's over these lines."""
    return f"  for (int i = 0; i < {count}; ++i) {{\n" + "".join(f"    {one}\n" for one in lines) + "  }\n"


def test_batched_loads_first_and_stores_then() -> None:
    done = batched(HALF_HEAD + turns("stage_shared_ptr[(i * 32)] = ((float)x_ptr[(i * 64)]);") + turns("y_ptr[i] = 0;"))
    assert done.places == 1
    load = done.source.index("tvm_orient_load<unsigned short>(x_ptr + ((i * 64)), true);")
    assert load < done.source.index("stage_shared_ptr[(i * 32)] = ((float)*(half*)&tvm_orient_held[tvm_orient_turn]);")
    assert "y_ptr[i] = 0;" in done.source


def test_batched_holds_zeros_outside_the_plane() -> None:
    loop = turns(*guarded("stage_shared_ptr[i]", "((float)x_ptr[(i - 3)])").splitlines())
    done = batched(HALF_HEAD + loop)
    assert done.places == 1
    assert "tvm_orient_load<unsigned short>(x_ptr + ((i - 3)), ((1 <= i)));" in done.source


@pytest.mark.parametrize(
    "source",
    [
        HEAD + turns("stage_shared_ptr[i] = x_ptr[i];"),
        HALF_HEAD + "  stage_shared_ptr[i] = ((float)x_ptr[i]);\n",
        HALF_HEAD + turns("stage_shared_ptr[i] = ((float)x_ptr[i]);", "dys_shared_ptr[i] = ((float)w_ptr[i]);"),
        HALF_HEAD + turns("*(half4*)(stage_shared_ptr + (i * 4)) = *(half4*)(x_ptr + (i * 4));"),
        HALF_HEAD + turns("stage_local_ptr[i] = ((float)x_ptr[i]);"),
        HALF_HEAD + turns("stage_shared_ptr[i] = ((float)x_ptr[i]);", "__syncthreads();"),
    ],
    ids=["float32", "no loop", "two copies", "whole words", "registers", "a barrier"],
)
def test_batched_leaves(source: str) -> None:
    assert left(batched, source)


# ---- guarded.declared ---------------------------------------------------------------------------


def test_declared_comes_before_the_first_kernel() -> None:
    done = declared(HEAD + "}\n")
    assert done.places == 1
    assert done.source.index("tvm_orient_load(") < done.source.index(names.KERNEL_MARK)
    assert done.source.endswith(HEAD + "}\n")
    assert declared("int x;\n").places == 0


# ---- predicated.predicated ----------------------------------------------------------------------


def test_predicated_loads_into_registers() -> None:
    done = predicated(HEAD + guarded("stage_local_ptr[7]", "x_ptr[(i - 3)]") + guarded("stage_local_ptr[8]", "x_ptr[i]", name="condval_2"))
    assert done.places == 2
    assert "  stage_local_ptr[7] = tvm_orient_load<float>(x_ptr + ((i - 3)), (1 <= i));\n" in done.source
    assert "condval" not in done.source


def test_predicated_counts_what_needs_no_test_and_what_it_does_not_understand() -> None:
    inside = "  stage_local_ptr[7] = x_ptr[i];\n  stage_local_ptr[8] = 0x0p+0f/*0.000000e+00*/;\n"
    assert predicated(HEAD + inside) == Rewritten(HEAD + inside, 0, needless=2)
    other = guarded("stage_local_ptr[9]", "x_ptr[i]", zero="zero")
    assert predicated(HEAD + inside + other).missed == 1


@pytest.mark.parametrize(
    "source",
    [
        "  stage_local_ptr[7] = x_ptr[i];\n",
        guarded("stage_shared_ptr[7]", "x_ptr[i]"),
        guarded("stage_local_ptr[7]", "dy_ptr[i]"),
        guarded("stage_local_ptr[7]", "((float)x_ptr[i])"),
        guarded("stage_local_ptr[7]", "x_ptr[i]", kind="half"),
    ],
    ids=["inside", "shared memory", "another operand", "a conversion", "half precision"],
)
def test_predicated_leaves(source: str) -> None:
    assert left(predicated, HEAD + source)


def test_weight_gradients_are_not_predicated() -> None:
    assert predicated in passes.applied("sm_90a", weight_gradient=False)
    assert predicated not in passes.applied("sm_90a", weight_gradient=True)


# ---- staging.asynchronous -----------------------------------------------------------------------


def test_asynchronous_copies_are_awaited_before_a_barrier() -> None:
    copies = "  stage_shared_ptr[i] = x_ptr[(i + 2)];\n" + guarded(
        "*(float4*)(stage_shared_ptr + (i * 4))", "*(float4*)(x_ptr + (i * 4))", "float4", "make_float4(0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f)"
    )
    done = asynchronous(f"{HEAD}{copies}  __syncthreads();\n")
    assert done.places == 2
    assert "  tvm_orient_copy<4>(stage_shared_ptr + (i), x_ptr + ((i + 2)), true);\n" in done.source
    assert "  tvm_orient_copy<16>(stage_shared_ptr + (i * 4), x_ptr + (i * 4), (1 <= i));\n" in done.source
    assert "tvm_orient_arrived(); __syncthreads();" in done.source


def test_asynchronous_copies_words_of_half_precision() -> None:
    done = asynchronous(HALF_HEAD + "  *(half2*)(x_shared_ptr + (i * 2)) = *(half2*)(x_ptr + (i * 2));\n")
    assert done.places == 1
    assert "tvm_orient_copy<4>(x_shared_ptr + (i * 2), x_ptr + (i * 2), true);" in done.source


def test_asynchronous_waits_for_all_but_the_next_tile() -> None:
    body = (
        "    stage_shared_ptr[((int)threadIdx.x)] = x_ptr[tvm_orient_ahead];\n    __syncthreads();\n    y_ptr[0] = stage_shared_ptr[0];\n    __syncthreads();\n"
    )
    done = asynchronous(f"{HEAD}  for (int tvm_orient_ahead = 0; tvm_orient_ahead < 4; ++tvm_orient_ahead) {{\n{body}  }}\n}}\n")
    assert done.places == 1
    kernel = done.source[done.source.index(names.KERNEL_MARK) :]
    assert kernel.count("tvm_orient_sent();") == 2
    assert kernel.count("tvm_orient_arrived_but_last(); __syncthreads();") == 1
    assert "tvm_orient_copy<4>(stage_shared_ptr + (tvm_orient_thread)" in kernel


@pytest.mark.parametrize(
    "source",
    [
        HALF_HEAD + "  stage_shared_ptr[i] = x_ptr[i];\n",
        HALF_HEAD + "  stage_shared_ptr[i] = ((float)x_ptr[i]);\n",
        HEAD + "  stage_local_ptr[i] = x_ptr[i];\n",
        HEAD + "  slices_shared_ptr[i] = slices_local_ptr[i];\n",
        HEAD + "  x_shared_ptr[i] = stage_shared_ptr[i];\n",
    ],
    ids=["single values of half precision", "a conversion", "registers", "from registers", "from shared memory"],
)
def test_asynchronous_leaves(source: str) -> None:
    assert left(asynchronous, source)


# ---- what TIR promises --------------------------------------------------------------------------

F32, F16 = spec_of("conv", 8, 12, 16, line(22.5, k=7)), spec_of("conv", 8, 12, 16, line(22.5, k=7), dtype="float16")


def source_of(spec: ConvSpec, name: str, **decisions: int) -> str:
    """CUDA source of a template's default with some decisions changed."""
    template = registry.find(name)
    return library.cuda_source(lower.scheduled(spec, GPU, [Choice.of(template, dataclasses.replace(template.default(spec, GPU), **decisions))]), GPU)


WORDS = {"smem_native_dtype": 1, "patch_w": 4, "patch_h": 2, "vector": 4, "store_via_smem": 0, "row_pad": 0, "plane_skew": 0, "tile": 0}
MISSED: dict[str, tuple[ConvSpec, str, dict[str, int], str, str]] = {
    "asynchronous": (F32, "shared_patch", {}, "_shared_ptr", "_fast_ptr"),
    "batched": (F16, "shared_patch", {"smem_native_dtype": 0}, "_shared_ptr", "_fast_ptr"),
    "by_words": (F16, "shared_patch", WORDS, "stage_shared", "window_shared"),
    "predicated": (F32, "direct", {}, "stage_local", "window_local"),
}


@pytest.mark.parametrize("name", MISSED)
def test_a_pass_that_misses_what_it_must_find_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, template, decisions, old, new = MISSED[name]
    source_of(spec, template, **decisions)
    plain = tvm.rewrite_cuda
    monkeypatch.setattr(tvm, "rewrite_cuda", lambda change: plain(lambda code: change(code.replace(old, new))))
    with pytest.raises(BuildFailed, match=rf"the pass {name} must find at least 1 places in the CUDA source of main\(.*got 0 "):
        source_of(spec, template, **decisions)


def test_branches_that_are_missed_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of("conv", 8, 12, 16, line(22.5, 90, k=7))
    module = lower.scheduled(spec, GPU, choices.default_choices(spec, GPU))
    plain = tvm.rewrite_cuda
    monkeypatch.setattr(tvm, "rewrite_cuda", lambda change: plain(lambda code: change(code.replace(names.BRANCH, "either"))))
    with pytest.raises(BuildFailed, match="the pass branches must find at least 2 places"):
        library.cuda_source(module, GPU)


def test_a_block_of_another_name_is_not_missed_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages and schedules follow the constant, regular expressions keep what it was."""
    monkeypatch.setattr(names, "STAGE", "window")
    with pytest.raises(BuildFailed, match="the pass predicated must"):
        source_of(F32, "direct")


def test_what_is_not_promised_may_be_missing() -> None:
    passes.hold({"branches": Rewritten("", 0)}, {"branches": 0, "asynchronous": 0}, "main()")
    passes.hold({"predicated": Rewritten("", 1, 1)}, {"predicated": 2}, "main()")
    with pytest.raises(BuildFailed, match="the pass asynchronous must find at least 2 places"):
        passes.hold({"asynchronous": Rewritten("", 1)}, {"asynchronous": 2}, "main()")
    with pytest.raises(BuildFailed, match="got 2 and 3 that it does not understand"):
        passes.hold({"predicated": Rewritten("", 1, 1, 3)}, {"predicated": 1}, "main()")


# ---- rewrites of TIR that a template asks for ---------------------------------------------------


def without_finish(monkeypatch: pytest.MonkeyPatch, template: Template) -> None:
    """Let a template forget its rewrites."""
    monkeypatch.setattr(type(template), "finish", lambda self, func, spec, decisions: func)


def test_a_loop_that_stays_annotated_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    template = registry.find("shared_patch")
    without_finish(monkeypatch, template)
    source_of(F32, "shared_patch")
    with pytest.raises(BuildFailed, match=f"shared_patch must rewrite each loop that it annotates, got {names.DOUBLE_BUFFER} left"):
        source_of(F32, "shared_patch", **AHEAD)


def test_a_prefetch_that_stays_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    device = arch_device("x86-64-v3")
    template = registry.find("cpu_rows")
    without_finish(monkeypatch, template)
    choice = Choice.of(template, dataclasses.replace(template.default(F32, device), prefetch_planes=2))
    with pytest.raises(BuildFailed, match=f"cpu_rows must rewrite each loop that it annotates, got {names.PREFETCH} left"):
        lower.schedule_part(F32, F32.channels, device, choice, 2)


def unrewritten(spec: ConvSpec, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scheduled function of a template before its rewrites."""
    template = registry.find(name)
    without_finish(monkeypatch, template)
    return lower.schedule_part(spec, spec.channels, GPU, Choice.of(template, template.default(spec, GPU)), 2)


def test_rewrites_that_find_nothing_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm_orient.codegen.tir import restore_layout, vectorize_pieces, warp_specialize
    from tvm_orient.problem.shear import shear_of

    func = unrewritten(F32, "direct", monkeypatch)
    with pytest.raises(BuildFailed, match="no store is in the chosen buffer"):
        restore_layout.in_place(func, shear_of(F32), (12, 16))
    with pytest.raises(BuildFailed, match="no loop over threads computes it"):
        warp_specialize.warp_specialized(func, 2)
    with pytest.raises(BuildFailed, match=r"axis 1 of block acc must be cut into vectors, and no loop runs along it"):
        vectorize_pieces.cut(func, names.ACC, 1, (0, 4), 4)


def test_whole_rows_of_a_stage_that_nobody_reads_fail() -> None:
    from tvm_orient.codegen.te import prim_func

    template = registry.find("direct")
    func = prim_func.part_func(F32, 8, template.stage_config(F32, template.default(F32, GPU)))
    prim_func._whole_rows(func, names.STAGE, 2)
    with pytest.raises(BuildFailed, match="reads of window must be widened"):
        prim_func._whole_rows(func, "window", 2)
