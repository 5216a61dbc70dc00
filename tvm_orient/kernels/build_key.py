"""The key of a kernel: everything that its bytes depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..forks import kept
from ..problem import generic_args
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..schedules.choices import Choice, is_generic
from ..toolchain.versions import toolchain
from . import source_hash
from .manifest import FORMAT

# environment variables that change what TVM's CUDA compiler does
_FLAGS = ("TVM_CUDA_COMPILE_MODE", "TVM_CUDA_NVRTC_EXTRA_OPTS", "TVM_CUDA_PTXAS_REG_LEVEL")


def build_key(spec: ConvSpec, device: Device, choices: Sequence[Choice]) -> BuildKey:
    """Returns the cache key of a spec on a device with one choice for each part of it."""
    flags = tuple((name, os.environ[name]) for name in _FLAGS if name in os.environ)
    one = is_generic(choices)  # whatever the layer
    chosen = tuple((c.template, c.version, c.decisions) for c in (choices[:1] if one else choices))
    layer = generic_args.key(spec) if one else spec.key
    return BuildKey(layer, chosen, device.kin, device.arch, toolchain(), source_hash.source_hash(), flags, device.model, device.features)


# (template, its version, its sorted decisions): a `choices.Choice` without its step
ChoiceKey = tuple[str, int, tuple[tuple[str, int | str], ...]]


@dataclass(frozen=True)
class BuildKey:
    """Everything that the bytes of a kernel depend on."""

    spec: str  #: ConvSpec.key of the layer: the problem
    choices: tuple[ChoiceKey, ...]  #: one for each group, in order
    device: str  #: `device.Device.kin`: two devices of one arch may be given different choices
    arch: str  #: sm_90a, avx2...: the instructions
    toolchain: tuple[tuple[str, str], ...]  #: (name, version) of tvm, tvm_ffi, cuda, and the compile mode
    source: str  #: `source_hash` of the code that generated it
    flags: tuple[tuple[str, str], ...]  #: (environment variable, value) of each that changes how TVM compiles
    model: str = ""  #: of a CPU, see `device.Device`: two of one name may be different models
    features: str = ""  #: of a CPU: the instruction sets that its kernels may use

    @kept
    def digest(self) -> str:
        """The name of the content: 20 hexadecimal digits, a function of the fields and of `manifest.FORMAT`.

        Raises:
            TypeError: a field holds a value with no stable encoding (only str, int, bool, None and tuples have one).
        """
        fields = {field.name: _stable(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)}
        text = json.dumps({"format": FORMAT, **fields}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def with_layer(self, text: str) -> BuildKey:
        """Returns the key of something else that depends on all the rest alike, such as of a part of a layer.

        Args:
            text: what stands for the spec.
        """
        return dataclasses.replace(self, spec=text)

    @property
    def name(self) -> str:
        """The entry's folder name, <op>-<digest>: spec keys can be far too long for a file name.

        Raises:
            InvalidArgument: spec is not a spec key.
            TypeError: see digest.
        """
        return f"{ConvSpec.op_of_key(self.spec)}-{self.digest}"


def _stable(name: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return [_stable(name, item) for item in value]
    if value is None or type(value) in (str, int, bool):
        return value
    raise TypeError(f"{name} of a build key must be made of str, int, bool, None and tuples, got {type(value).__name__}: {value!r}")
