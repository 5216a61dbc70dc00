"""Registers the operators as soon as tvm_orient and torch are both imported, whichever comes first: programs that were saved need no more to load.

Nothing here imports torch: logs, keys and the command line do without it, and with none installed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType


def register() -> None:
    """Register the operators and their counts of operations; where that fails a warning says why, since it is torch that is being imported."""
    try:
        importlib.import_module(".ops.flops", __package__)
    except Exception as problem:  # whatever a torch of another version raises; whoever calls an operator meets it again
        warnings.warn(f"tvm_orient has not registered its operators: {type(problem).__name__}: {problem}", stacklevel=2)


class _WithTorch(importlib.abc.MetaPathFinder):
    """Finds torch, and modules of ours that may be the first to import it, as the other finders do, and registers once torch is there.

    It waits until the outermost of these imports has ended: the modules that the operators need may be half imported until then.
    """

    def __init__(self) -> None:
        """Start with no import under way."""
        self.depth = 0  # imports, one inside the other, that have begun and not ended

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        """Return the spec that the other finders have for torch or a module of ours, its loader watched; None for any other module."""
        if name != "torch" and not name.startswith(f"{__package__}."):
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((one for one in found if one is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self._executed(execute, module)  # type: ignore[method-assign]
        return spec

    def _executed(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        """Import a module by the loader's own function, and register after the outermost one where torch is there."""
        self.depth += 1
        try:
            execute(module)
        finally:
            self.depth -= 1
        if self.depth == 0 and sys.modules.get("torch") is not None and self in sys.meta_path:
            sys.meta_path.remove(self)
            register()


def with_torch() -> None:
    """Register now where torch is imported, else as soon as it is."""
    if sys.modules.get("torch") is not None:
        register()
    else:
        sys.meta_path.insert(0, _WithTorch())
