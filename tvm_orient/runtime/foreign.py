"""Foreign kernels, which were made for another CPU, are refused: one that uses an instruction which this CPU lacks would end the process."""

from __future__ import annotations

from pathlib import Path

from ..errors import EnvironmentProblem
from ..kernels import manifest
from ..problem.device import own_cpu

_MAX_NAMED = 8  # lacking instruction sets that a message names


def refuse_foreign(kernel: Path) -> None:
    """Refuses a CPU's kernel that may use instructions which this CPU lacks, by the how.json beside it; one without how.json is not looked at.

    Args:
        kernel: the path of a kernel.so, in an entry of the cache or in a folder that `tvm_orient.kernels.bundle.export` made.

    Raises:
        EnvironmentProblem: this CPU lacks some; says which.
    """
    try:
        told = manifest.read(kernel.parent)
    except manifest.Unreadable:  # whoever needs more of it says what is wrong
        return
    here = own_cpu()
    lacking = sorted(set(told.features).difference(here.features))
    if lacking and here.features:
        few = ", ".join(lacking[:_MAX_NAMED]) + (f" and {len(lacking) - _MAX_NAMED} more" if len(lacking) > _MAX_NAMED else "")
        raise EnvironmentProblem(
            f"a kernel runs only where the instructions are that it was made for ({told.model}), and {here.name} lacks {few}: {kernel.parent}: "
            "build it on this machine, or with `tvm-orient build --arch x86-64-v3` or a lower level"
        )
