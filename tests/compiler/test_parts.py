"""Parts of a layer: where they begin, what bytes they come to, and which share of the workspace is whose. Nothing is compiled."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.helpers import OPS, line, spec_of
from tvm_orient.compiler.parts import ALIGNMENT, CompiledPart, Part, PartLaunch, channel_elements, placed_parts, workspaces
from tvm_orient.errors import BuildFailed
from tvm_orient.problem.device import Device, arch_device, cpu_device
from tvm_orient.problem.spec import DTYPES, LAYOUTS, ConvSpec
from tvm_orient.schedules.choices import Choice, default_choices

CPU, GPU = cpu_device(), arch_device("sm_90a")
CHOICE = Choice("patch", 2, (("patch_h", 4), ("stage", "shared")), "exact")


def placed(spec: ConvSpec, device: Device) -> list[tuple[Part, int]]:
    """The parts of a spec, all of one choice."""
    return [(one.part, one.channel) for one in placed_parts(spec, [CHOICE] * len(spec.parts()), device)]


# ---- where parts begin --------------------------------------------------------------------------


@st.composite
def specs(draw: st.DrawFn) -> ConvSpec:
    """A layer of up to eight angles, some of them the same, on planes of up to 9 x 9."""
    op, layout, dtype = draw(st.sampled_from(OPS)), draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(sorted(DTYPES)))
    angles = draw(st.lists(st.sampled_from((0, 22.5, 45, 90)), min_size=1, max_size=8))
    size = st.integers(1, 9)
    return spec_of(op, draw(st.integers(1, 40)), draw(size), draw(size), line(*angles, k=3), draw(st.sampled_from((1, 2))), "zeros", dtype, layout)


@given(specs(), st.sampled_from((CPU, GPU)))
def test_every_part_has_its_channels_and_addresses_of_whole_vectors(spec: ConvSpec, device: Device) -> None:
    """Each channel is computed once, by a part of its angle; the address that a part is given is aligned as its code counts on."""
    ranges = []
    for (part, channel), (start, stop, alone) in zip(placed(spec, device), spec.parts(), strict=True):
        assert (part.spec, channel + part.offset, part.channels) == (alone, start, stop - start)
        assert part.offset >= 0
        assert channel >= 0
        for operand in spec.operands(1):
            if operand.role != "workspace":
                assert channel * channel_elements(operand) * DTYPES[operand.dtype] % ALIGNMENT[device.kind] == 0
        ranges.append(range(start, stop))
    assert [channel for one in ranges for channel in one] == list(range(spec.channels))


@given(specs(), st.sampled_from((CPU, GPU)))
def test_an_offset_is_the_least_that_there_can_be(spec: ConvSpec, device: Device) -> None:
    """No later channel up to the part's first has an address that is as good: of two layers with such a part, more have the same one."""
    for part, channel in placed(spec, device):
        for nearer in range(channel + 1, channel + part.offset + 1):
            addresses = [nearer * channel_elements(one) * DTYPES[one.dtype] for one in spec.operands(1) if one.role != "workspace"]
            assert any(address % ALIGNMENT[device.kind] for address in addresses)


@pytest.mark.parametrize(
    ("device", "layout", "dtype", "size", "channels", "offsets"),
    [  # a plane of 4 x 4 has 16 elements; the weights of a channel 3, or none where channels lie side by side
        (GPU, "nchw", "float32", 4, 16, [0, 0]),
        (GPU, "nchw", "float32", 4, 6, [0, 3]),
        (GPU, "nchw", "float16", 4, 16, [0, 0]),
        (GPU, "nchw", "float16", 4, 8, [0, 4]),
        (GPU, "nhwc", "float32", 4, 8, [0, 0]),
        (GPU, "nhwc", "float16", 4, 8, [0, 4]),
        (CPU, "nchw", "float32", 4, 16, [0, 8]),
        (CPU, "nchw", "float32", 4, 32, [0, 0]),
        (CPU, "nchw", "float64", 4, 16, [0, 0]),
        (CPU, "nhwc", "bfloat16", 4, 32, [0, 16]),
        (CPU, "nhwc", "bfloat16", 4, 64, [0, 0]),
        (GPU, "nchw", "float32", 3, 8, [0, 0]),
        (GPU, "nchw", "float32", 3, 5, [0, 2]),  # groups of 2 and 3
    ],
)
def test_offsets_by_device_layout_and_dtype(device: Device, layout: str, dtype: str, size: int, channels: int, offsets: list[int]) -> None:
    spec = spec_of("conv", channels, size, size, line(0, 45, k=3), 1, "zeros", dtype, layout)
    assert [part.offset for part, _ in placed(spec, device)] == offsets


def test_a_part_is_the_same_by_whatever_step_its_choice_was_found_and_at_whatever_place() -> None:
    one, other = spec_of("conv", 32, 4, 4, line(0, 45, k=3)), spec_of("conv", 32, 4, 4, line(45, 0, k=3))
    tuned = dataclasses.replace(CHOICE, step="nearest")
    turned = [found.part for found in placed_parts(other, [tuned] * 2, GPU)]
    assert turned[::-1] == [part for part, _ in placed(one, GPU)]


def test_a_part_depends_on_all_that_its_code_does() -> None:
    part = Part(spec_of("conv", 8, 5, 6, line(0, k=3)), 4, 0, dataclasses.replace(CHOICE, step=""))
    changes = {"spec": spec_of("conv", 8, 5, 6, line(90, k=3)), "channels": 3, "offset": 1, "choice": dataclasses.replace(part.choice, version=3)}
    others = [dataclasses.replace(part, **{name: value}) for name, value in changes.items()]  # type: ignore[arg-type]
    assert set(changes) == {field.name for field in dataclasses.fields(Part)}
    assert len({one.symbol for one in (part, *others)}) == len(others) + 1
    assert len({json.dumps(one.plain) for one in (part, *others)}) == len(others) + 1


@given(specs(), st.sampled_from((CPU, GPU)))
def test_a_part_goes_through_json(spec: ConvSpec, device: Device) -> None:
    for part, _ in placed(spec, device):
        again = Part.of_plain(json.loads(json.dumps(part.plain)))
        assert (again, again.symbol) == (part, part.symbol)


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "cuda"])
@pytest.mark.parametrize("op", OPS)
def test_real_choices_go_through_json(op: str, device: Device) -> None:
    spec = spec_of(op, 13, 7, 9, line(0, 45, 112.5, k=5))
    for one in placed_parts(spec, default_choices(spec, device), device):
        assert Part.of_plain(json.loads(json.dumps(one.part.plain))) == one.part


# ---- bytes of a compiled part -------------------------------------------------------------------

COMPILED = [
    CompiledPart((PartLaunch(6, 0, 1, (), (2048, 64)), PartLaunch(0, 3, 1)), (2, 5), b"\x7fELF\n\0{}\n" + bytes(range(256)), ""),
    CompiledPart((PartLaunch(1, 2, 96, ("w", "x", "y", "n")),), None, b".version 9.0\n", "// a source\nextern é\n"),
    CompiledPart((), None, b"", ""),
]


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_compiled_part_goes_through_bytes(compiled: CompiledPart) -> None:
    assert CompiledPart.of_payload(compiled.payload) == compiled


@pytest.mark.parametrize("compiled", COMPILED)
def test_bytes_that_are_damaged_anywhere_are_refused(compiled: CompiledPart) -> None:
    """Each byte flipped, each length cut short, and something more at the end."""
    payload = compiled.payload
    flipped = [payload[:at] + bytes([payload[at] ^ bit]) + payload[at + 1 :] for at in range(len(payload)) for bit in (1, 0x20, 0x80)]
    for damaged in (*flipped, *(payload[:size] for size in range(len(payload))), payload + b"\n", b"\n" + payload, b"\0" * len(payload)):
        with pytest.raises(BuildFailed, match=r"a compiled part must be whole, and begin with its format .*: it is compiled again"):
            CompiledPart.of_payload(damaged)


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr("tvm_orient.compiler.parts.FORMAT", 2)
        payload = COMPILED[0].payload
    with pytest.raises(BuildFailed, match="its format 1 and its checksum"):
        CompiledPart.of_payload(payload)


@pytest.mark.parametrize(("each", "more", "counts"), [(3, 0, [0, 3, 6]), (0, 4, [4, 4, 4]), (2, 5, [5, 7, 9])])
def test_tasks_of_so_many_images(each: int, more: int, counts: list[int]) -> None:
    assert [PartLaunch(each, more, 1).tasks(n) for n in range(3)] == counts


# ---- shares of the workspace --------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 9), st.none() | st.tuples(st.integers(1, 4), st.integers(1, 31))), min_size=1, max_size=8), st.integers(1, 5))
def test_shares_of_a_workspace_are_apart_aligned_and_within(spaces: list[tuple[int, tuple[int, int] | None]], n: int) -> None:
    """For every number of images: what n images of a part need begins at n times its start, and ends before the next one begins."""
    spec = spec_of("conv_dw", sum(channels for channels, _ in spaces), 4, 4, line(0, k=31))
    starts, whole = workspaces(spec, spaces)
    shares = [(start, channels * math.prod(space)) for start, (channels, space) in zip(starts, spaces, strict=True) if space is not None]
    held = spec.channels * math.prod(whole) if whole else 0
    assert len(starts) == len(spaces)
    end = 0
    for start, size in shares:
        assert n * start * DTYPES["float32"] % ALIGNMENT["cpu"] == 0
        assert n * start >= end
        end = n * (start + size)
    assert end <= n * held
    assert (whole is None) == (not shares)
    assert held < sum(size + 16 for _, size in shares) + spec.channels, "and little more than they need"
