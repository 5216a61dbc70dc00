"""The operators are registered as soon as tvm_orient and torch are both imported, whichever comes first: programs that were saved need no more to load.

Nothing here imports torch: logs, keys and the command line do without it, and with none installed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType


def register() -> None:
    """Register the operators and what is counted for them; a warning says why where that fails, since it is torch that is being imported."""
    try:
        importlib.import_module(".flops", __package__)
    except Exception as problem:  # whatever a torch of another version raises; whoever calls an operator meets it again
        warnings.warn(f"tvm_orient has not registered its operators: {type(problem).__name__}: {problem}", stacklevel=2)


class _WithTorch(importlib.abc.MetaPathFinder):
    """Finds torch as the other finders do, and registers once it has been executed; steps aside after that."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)  # it may be on the path later
            return spec
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            register()

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def with_torch() -> None:
    """Register now where torch is imported, else as soon as it is."""
    if sys.modules.get("torch") is not None:
        register()
    else:
        sys.meta_path.insert(0, _WithTorch())
