"""No tap moves because theta was rounded on its way: by a cast of the state dict, by a mean of checkpoints, by what trains the module."""

from __future__ import annotations

import copy
import io
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tvm_orient as to
from tvm_orient.nn import DepthwiseOrientedConv1d, OrientedConv2d, angled, rounding
from tvm_orient.problem.line_offsets import angles_between

ROOT = Path(__file__).resolve().parents[2]
Layer = OrientedConv2d | DepthwiseOrientedConv1d
HALVES = [torch.float16, torch.bfloat16]


def layer(directions: int = 8, taps: int = 31) -> OrientedConv2d:
    return OrientedConv2d(36, taps, directions=directions)


def published(directions: int = 8, taps: int = 31) -> DepthwiseOrientedConv1d:
    angles = [float(angles_between(directions)[(directions * (c + 1) - 1) // 36]) for c in range(36)]
    return DepthwiseOrientedConv1d(36, 36, taps, groups=36, angle=angles)


def exact(module: Layer, like: Layer) -> bool:
    return module.taps == like.taps and torch.equal(module.theta, like.theta) and module.theta.dtype == torch.float32


@pytest.fixture(autouse=True)
def _silence_is_asked_for() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


# ---- rounded on the way -------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("make", [layer, published])
@pytest.mark.parametrize("directions", [6, 8, 12, 36])
@pytest.mark.parametrize("cast", [*HALVES, torch.float64, torch.float8_e4m3fn], ids=str)
def test_a_cast_state_dict_moves_no_tap(cast: torch.dtype, directions: int, make: Callable[..., Layer], assign: bool) -> None:
    source, module = make(directions), make(directions)
    module.load_state_dict({name: value.to(cast) for name, value in source.state_dict().items()}, assign=assign)
    assert exact(module, source)
    module.load_state_dict({name: value.to(cast).float() for name, value in source.state_dict().items()} if cast in HALVES else source.state_dict())
    assert exact(module, source)


@pytest.mark.parametrize("taps", [7, 31, 63])
@pytest.mark.parametrize("directions", [6, 8, 12, 36])
@pytest.mark.parametrize("mean", ["sum", "stack", "moving", "half", "cast back"])
def test_a_mean_of_equal_checkpoints_moves_no_tap(mean: str, directions: int, taps: int) -> None:
    source, module = layer(directions, taps), layer(directions, taps)
    theta = source.state_dict()["theta"]
    if mean == "sum":
        found = sum([theta / 7 for _ in range(7)], torch.zeros_like(theta))
    elif mean == "stack":
        found = torch.stack([theta] * 7).mean(0)
    elif mean == "half":
        found = sum([theta.bfloat16() for _ in range(3)], torch.zeros_like(theta.bfloat16())) / 3
    elif mean == "cast back":
        found = torch.stack([theta.bfloat16().float()] * 7).mean(0)
    else:
        found = theta.clone()
        for _ in range(2000):
            found = 0.999 * found + (1 - 0.999) * theta
    module.load_state_dict({**source.state_dict(), "theta": found})
    assert exact(module, source)


def test_the_mean_would_move_taps() -> None:
    """What the tests above are about: unmended, these angles have other taps."""
    theta = torch.from_numpy(angles_between(12))
    mean = torch.stack([theta] * 7).mean(0)
    assert to.Taps.oriented(mean.tolist(), 31) != to.Taps.oriented(theta.tolist(), 31)
    assert to.Taps.oriented(theta.half().float().tolist(), 31) != to.Taps.oriented(theta.tolist(), 31)


def test_parents_meta_devices_and_files() -> None:
    source = torch.nn.Sequential(torch.nn.ReLU(), layer(12))
    file = io.BytesIO()
    torch.save({name: value.half() for name, value in source.state_dict().items()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    with torch.device("meta"):
        built = [torch.nn.Sequential(torch.nn.ReLU(), layer(12)) for _ in range(2)]
    built[0].load_state_dict(saved, assign=True)
    built[1].to_empty(device="cpu").load_state_dict(saved)
    for one in built:
        assert exact(one[1], source[1])  # type: ignore[arg-type]
        assert "theta" in dict(one[1].named_buffers())
    emptied = built[1].to_empty(device="cpu")[1]
    assert exact(emptied, source[1])  # type: ignore[arg-type]


def test_loading_into_the_meta_device_changes_nothing() -> None:
    module = OrientedConv2d(6, 5, theta=0.3, device="meta")
    before = module.taps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is a no-op
        module.load_state_dict(OrientedConv2d(6, 5, theta=2.0).state_dict())
    assert module.taps == before


@pytest.mark.parametrize("cast", HALVES, ids=str)
def test_what_casts_buffers_in_place_moves_no_tap(cast: torch.dtype) -> None:
    """As data-parallel wrappers with a dtype for buffers do; what they then save is cast back, and rounded."""
    source, module, again = (OrientedConv2d(4, 5, directions=2) for _ in range(3))
    module.theta.data = module.theta.data.to(cast)
    module(torch.zeros(1, 4, 4, 4))
    assert module.taps == source.taps
    assert torch.equal(module.state_dict()["theta"], source.theta)
    again.load_state_dict({**module.state_dict(), "theta": module.theta.float()})
    assert exact(again, source)


def test_averaged_buffers_move_no_tap() -> None:
    source, module = layer(12), layer(12)
    averaged = torch.optim.swa_utils.AveragedModel(module, avg_fn=lambda mean, new, count: 0.999 * mean + (1 - 0.999) * new, use_buffers=True)
    for _ in range(50):
        averaged.update_parameters(module)
    assert not torch.equal(averaged.module.theta, source.theta)
    assert averaged.module._now() == source.taps
    assert torch.equal(averaged.state_dict()["module.theta"], source.theta)


def test_built_without_memory() -> None:
    assert exact(torch.nn.utils.skip_init(OrientedConv2d, 36, 31, directions=12), layer(12))  # type: ignore[arg-type]


FSDP = """
import os, sys, torch, tvm_orient as to
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
torch.manual_seed(0)
half = MixedPrecision(param_dtype=torch.bfloat16, buffer_dtype=torch.bfloat16)
layer = to.nn.OrientedConv2d(16, 31, directions=8)
before = layer.taps
net = FullyShardedDataParallel(torch.nn.Sequential(layer), device_id=torch.device("cpu"), use_orig_params=True, mixed_precision=half)
with torch.no_grad():
    net(torch.randn(1, 16, 5, 5))
assert layer.theta.dtype == torch.bfloat16
assert layer.taps == before
again = to.nn.OrientedConv2d(16, 31, directions=8)
again.load_state_dict({name.removeprefix("0."): value for name, value in net.state_dict().items()})
assert again.taps == before and torch.equal(again.theta, to.nn.OrientedConv2d(16, 31, directions=8).theta)
print("kept")
os._exit(0)
"""


def test_fully_sharded_training_with_half_buffers(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TVM_ORIENT_BUILD": "8"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FSDP, str(tmp_path / "meet")], env=environment, capture_output=True, text=True, timeout=120)
    if "gloo" in done.stderr and "ProcessGroup" in done.stderr and "not available" in done.stderr:
        pytest.skip("this torch has no gloo")
    assert "kept" in done.stdout, done.stderr


# ---- other angles rule --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [layer, published])
def test_other_angles_rule(make: Callable[..., Layer]) -> None:
    source, module = make(12), make(12)
    with torch.no_grad():
        source.theta.add_(0.1)
    module.load_state_dict(source.state_dict())
    assert exact(module, source)
    assert module.taps != make(12).taps


def test_an_angle_close_by_that_was_meant_rules() -> None:
    """1.57 for pi/2, 0.5 for 30 degrees: typed, not rounded."""
    for own, typed in ((math.pi / 2, 1.57), (math.pi / 6, 0.5), (math.pi / 4, 0.785)):
        module = OrientedConv2d(4, 31, theta=own)
        module.load_state_dict(OrientedConv2d(4, 31, theta=typed).state_dict())
        assert module.taps == to.Taps.oriented(typed, 31)


@pytest.mark.parametrize("cast", HALVES, ids=str)
@pytest.mark.parametrize("back", [False, True], ids=["half", "cast back"])
def test_rounded_angles_of_another_module_are_taken_with_a_warning_that_names_the_layer(cast: torch.dtype, back: bool) -> None:
    net = torch.nn.Sequential(torch.nn.ReLU(), OrientedConv2d(8, 31, theta=[0.1] * 8))
    rounded = torch.from_numpy(angles_between(8)).to(cast)
    with pytest.warns(UserWarning, match=r"theta of '1' came rounded .*Make the module with the exact angles") as said:
        net.load_state_dict({**net.state_dict(), "1.theta": rounded.float() if back else rounded})
    assert said[0].filename == __file__
    assert net[1].taps == to.Taps.oriented(rounded.float().tolist(), 31)  # type: ignore[union-attr]


def test_what_counts_as_rounded() -> None:
    eight = angles_between(8).tolist()
    half = torch.tensor(eight).half().tolist()
    assert rounding.is_rounded(half, eight, torch.float32)
    assert not rounding.is_rounded(half[::-1], eight, torch.float32)
    assert not rounding.is_rounded([*eight[:7], eight[7] + 0.01], eight, torch.float32), "all of them or none"
    assert not rounding.is_rounded([0.001, *eight[1:]], eight, torch.float32)
    assert not rounding.is_rounded(eight[:4], eight, torch.float32)
    assert rounding.look_rounded(half, torch.float32)
    assert not rounding.look_rounded(eight, torch.float32)
    assert not rounding.look_rounded([0.0, 0.5, 1.25], torch.float32), "as somebody types them"


# ---- one for each channel, one for each group ---------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_published_angles_load_into_groups_of_the_same(shape: tuple[int, ...]) -> None:
    wide = torch.tensor([0.3, 0.3, 0.3, 1.2, 1.2, 1.2]).reshape(shape)
    theirs = {"weight": torch.randn(6, 1, 1, 5), "bias": torch.randn(6), "theta": torch.nn.Parameter(wide)}
    for assign in (False, True):
        module = OrientedConv2d(6, 5, theta=[0.3, 1.2])
        module.load_state_dict(theirs, assign=assign)
        assert module.theta.shape == (2,)
        assert "theta" not in dict(module.named_parameters())
        assert torch.equal(module.weight, theirs["weight"].view(6, 5))
        each = OrientedConv2d(6, 5, theta=[0.1] * 6)
        each.load_state_dict({**theirs, "theta": torch.tensor([0.3, 1.2])}, assign=assign)
        assert each.taps == module.taps
        with pytest.raises(RuntimeError, match="size mismatch for theta"):
            OrientedConv2d(6, 5, theta=[0.1, 0.2]).load_state_dict(theirs, assign=assign)


def test_more_angles_than_channels_load_as_the_channels_took_them() -> None:
    """Checkpoints from when a module could have more directions than channels."""
    module = OrientedConv2d(3, 5)
    module.load_state_dict({**module.state_dict(), "theta": torch.from_numpy(angles_between(8))})
    assert module.taps == to.Taps.oriented(angles_between(8)[[2, 5, 7]], 5)


def test_a_horizontal_conv2d_loads_where_the_line_is_horizontal() -> None:
    conv, x = torch.nn.Conv2d(6, 6, (1, 5), padding=(0, 2), groups=6), torch.randn(2, 6, 8, 9)
    for module in (OrientedConv2d(6, 5, theta=0.0), DepthwiseOrientedConv1d(6, 6, 5)):
        module.load_state_dict(conv.state_dict())
        torch.testing.assert_close(module(x), conv(x))
    with pytest.raises(RuntimeError, match=r'Missing key.*"theta"'):
        OrientedConv2d(6, 5, theta=0.3).load_state_dict(conv.state_dict())
    own = OrientedConv2d(6, 5, theta=0.0).state_dict()
    del own["theta"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"theta"'):
        OrientedConv2d(6, 5, theta=0.0).load_state_dict(own)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        OrientedConv2d(6, 5, theta=0.0).load_state_dict(torch.nn.Conv2d(6, 6, (5, 1), groups=6).state_dict(), strict=False)


def test_angles_that_are_none_are_refused_by_the_layer_s_name() -> None:
    net = torch.nn.Sequential(OrientedConv2d(4, 5, theta=0.3))
    with pytest.raises(to.InvalidArgument, match=r"theta of '0': theta must be finite.*nan"):
        net.load_state_dict({**net.state_dict(), "0.theta": torch.tensor([math.nan])})


# ---- written to ---------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Layer], Any]] = {
    "fill_": lambda m: m.theta.fill_(0.5),
    "copy_": lambda m: m.theta.copy_(torch.full_like(m.theta, 0.5)),
    "an item": lambda m: m.theta.view(-1).__setitem__(slice(None), 0.5),
    "a tensor": lambda m: setattr(m, "theta", torch.full((4,), 0.5)),
    "a number": lambda m: setattr(m, "theta", 0.5),
    "a list": lambda m: setattr(m, "theta", [0.5] * 4),
    "a parameter without gradient": lambda m: setattr(m, "theta", torch.nn.Parameter(torch.full((4, 1), 0.5), requires_grad=False)),
}


both = pytest.mark.parametrize(
    "make", [lambda: OrientedConv2d(4, 5, theta=[0.1, 0.9, 1.5, 2.0]), lambda: DepthwiseOrientedConv1d(4, 4, 5, angle=1.5)], ids=["ours", "published"]
)


@both
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("then", ["call", "save", "cast", "copy"])
def test_angles_that_are_written_are_taken(then: str, make: Callable[[], Layer], write: Callable[[Layer], Any]) -> None:
    module, x, wanted = make(), torch.randn(1, 4, 6, 7), to.Taps.oriented(0.5, 5)
    module(x)
    with torch.no_grad():
        write(module)
    if then == "save":
        module.load_state_dict(module.state_dict())
    elif then == "cast":
        module.double().float()
    elif then == "copy":
        module = copy.deepcopy(module)
    assert torch.equal(module(x), to.tap_conv2d(x, module.weight, wanted, module.bias))
    assert module.taps.for_channels(4) == wanted
    assert set(module.theta.flatten().tolist()) == {0.5}
    assert "degrees=[28.6479]" in repr(module)
    assert isinstance(module._buffers["theta"], Tensor)


def test_angles_written_behind_autograd_are_saved() -> None:
    module = OrientedConv2d(4, 5, theta=0.1)
    module.theta.data.fill_(0.5)
    twin = OrientedConv2d(4, 5, theta=0.1)
    twin.load_state_dict(module.state_dict())
    assert twin.taps == module.taps == to.Taps.oriented(0.5, 5)


def test_assigned_under_compile() -> None:
    module, x = OrientedConv2d(4, 5, theta=0.1), torch.randn(1, 4, 6, 7)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    compiled(x)
    module.theta = 1.2
    torch.testing.assert_close(compiled(x), to.tap_conv2d(x, module.weight, to.Taps.oriented(1.2, 5), module.bias))


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (torch.nn.Parameter(torch.zeros(4)), "theta has no gradient"),
        (torch.zeros(4, requires_grad=True), "theta has no gradient"),
        (45, r"whole number 45: directions=45"),
        (torch.tensor([1, 2]), "whole number 1"),
        ([0.0] * 5, r"1 <= G <= C = 4.*got shape \(5,\)"),
        (math.inf, "theta must be finite"),
        ("up", "theta must be a number"),
        (None, "theta must be"),
    ],
    ids=str,
)
def test_what_is_refused_leaves_the_angles(value: Any, rule: str) -> None:
    module = OrientedConv2d(4, 5, theta=0.1)
    with pytest.raises(to.InvalidArgument, match=rule):
        module.theta = value
    assert module.taps == to.Taps.oriented(0.1, 5)
    assert module.theta.tolist() == pytest.approx([0.1])


@both
def test_in_inference_mode(make: Callable[[], Layer]) -> None:
    x = torch.randn(1, 4, 6, 7)
    with torch.inference_mode():
        module = make()
        before, twin = module(x), copy.deepcopy(module)
        module.theta.fill_(0.5)
        after = to.tap_conv2d(x, module.weight, to.Taps.oriented(0.5, 5), module.bias)
        assert torch.equal(twin(x), before)
        assert module.state_dict()["theta"].flatten()[0] == 0.5
        assert torch.equal(module.double().float()(x), after)


@both
def test_a_buffer_that_is_told_to_ask_for_a_gradient_is_refused(make: Callable[[], Layer]) -> None:
    module = make()
    module.theta.requires_grad_()
    with pytest.raises(to.InvalidArgument, match="theta has no gradient"):
        module(torch.randn(1, 4, 6, 7))


def test_each_look_at_a_gpu_is_one_that_may_find_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data-parallel training writes the same theta in each step, and reading it there waits for the GPU."""
    module, looks, numbers = OrientedConv2d(4, 5, theta=0.1), [], angled._numbers
    monkeypatch.setattr(angled, "_waits", lambda theta: True)
    monkeypatch.setattr(angled, "_numbers", lambda theta: looks.append(1) or numbers(theta))
    own = module.theta.clone()
    for _ in range(100):
        module.theta.copy_(own)
        module._now()
    assert len(looks) == 7
    module.theta.fill_(0.5)
    assert module.state_dict()["theta"].item() == 0.5
    assert module.taps == to.Taps.oriented(0.5, 5), "a state dict is always of what is there"
    for angle in (0.6, 0.7, 0.8):
        module.theta.fill_(angle)
        assert module._now() == to.Taps.oriented(angle, 5), "what changes something is always seen"


def test_a_theta_that_is_lent_for_a_call_serves_that_call() -> None:
    module, x = OrientedConv2d(4, 5, theta=0.1), torch.randn(1, 4, 6, 7)
    before = module(x)
    lent = torch.func.functional_call(module, {"theta": torch.tensor([1.2])}, (x,))
    assert torch.equal(lent, to.tap_conv2d(x, module.weight, to.Taps.oriented(1.2, 5), module.bias))
    assert torch.equal(module(x), before)
