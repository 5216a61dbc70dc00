"""Building: a spec and a device become a kernel on disk, by the best record that the logs hold for each angle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import EnvironmentProblem, Unsupported
from ..problem.device import Device
from ..problem.spec import LIMIT, ConvSpec
from ..schedules.choices import Choice, is_generic
from . import cache, shared_cache
from .build_key import build_key
from .layer_build import compiled
from .resolve import explain

_SPARE_ROWS = 256  # rows beyond a plane that a kernel may stage or fetch


def build(
    spec: ConvSpec,
    device: Device,
    choices: Sequence[Choice] | None = None,
    store: cache.KernelCache | None = None,
    *,
    compiling: bool = True,
    limit: float | None = None,
    instead_of: Path | None = None,
    urgent: bool = True,
) -> Path:
    """Returns the path of the kernel.so of a spec, found in a cache or compiled and published in the user's, with how.json beside it.

    It is compiled in a process of its own (`tvm_orient.kernels.compile_process`): a compiler that dies takes nothing along.

    Args:
        choices: one for each part of the spec; None asks the logs, as `explain`.
        store: the cache; None is that of TVM_ORIENT_CACHE_DIR, after those that are shared.
        compiling: False forbids compiling.
        limit: seconds that compiling may take, and `tvm_orient.kernels.cache.Busy` is raised where another process is at it; None waits for both.
        instead_of: a path that was returned before and cannot be loaded: it counts as a miss, and is replaced once another is there.
        urgent: as for `tvm_orient.kernels.compile_process.compiled`.

    Raises:
        Unsupported: no template serves it, or an image is too large for 32 bits.
        BuildFailed: the compiler refused, or took longer than the limit.
        EnvironmentProblem: not in the cache, and compiling is forbidden (TVM_ORIENT_BUILD=0) or impossible here.
    """
    chosen = tuple(choices) if choices is not None else tuple(e.choice for e in explain(spec, device))
    if not chosen:
        raise Unsupported(f"{spec} has no channels to compute")
    key = build_key(spec, device, chosen)
    found = shared_cache.find(key) if store is None else None
    if found is not None and found != instead_of:
        return found
    store = store or cache.KernelCache()
    found = store.find(key)
    if found is not None and found != instead_of:
        return found
    if not compiling:
        raise EnvironmentProblem(
            f"no kernel for {spec} on {device.slug} in {store.directory}, and compiling is off (TVM_ORIENT_BUILD=0): "
            "run `tvm-orient build --specs FILE`, or unset it"
        )
    if not is_generic(chosen):
        _refuse_large(spec)
    return store.publish(key, lambda folder: compiled(spec, device, chosen, folder, limit, urgent=urgent), waiting=limit is None, instead_of=instead_of)


def _refuse_large(spec: ConvSpec) -> None:
    """Refuses a layer whose own kernel would hold places in a padded image that 32 bits cannot count: TVM says only that a literal is too large.

    Raises:
        Unsupported: an image and its margin have too many elements.
    """
    row = max(spec.width, spec.out_width) * (spec.channels if spec.layout == "nhwc" else 1)
    image, spare = spec.channels * spec.height * spec.width, _SPARE_ROWS * row
    if image + spare > LIMIT:
        raise Unsupported(
            f"a kernel of its own needs images of at most {LIMIT - spare} elements, C * H * W, so that 32 bits count {_SPARE_ROWS} rows more, "
            f"got {image} in {spec}: cut the plane into tiles, or leave it to the generic kernel"
        )
