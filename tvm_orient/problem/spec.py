"""ConvSpec: one problem, whole and frozen. It enters at the op boundary and comes out unchanged at launch."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from ..errors import InvalidArgument
from ..forks import kept
from .taps import Taps

OPS = ("conv", "conv_dx", "conv_dw")
DTYPES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}  # bytes of an element
HALVES = ("float16", "bfloat16")  # dtypes of half precision, whose sums are float32
_WORD = 4  # bytes of a word of a GPU
PADDING_MODES = ("zeros", "circular")  # what lies beyond the edges of x
LAYOUTS = ("nchw", "nhwc")  # how images lie in memory
LIMIT = 2**31 - 1  # elements of a tensor: kernels index with 32 bits
ACTIVATIONS = ("none", "relu", "silu", "gelu")
_KEY = re.compile(r"(conv|conv_dx|conv_dw)(\+bias)?(?:\+([a-z]+))?-c(\d+)h(\d+)w(\d+)-s(\d+)(?:x(\d+))?-(\w+)-(\w+)-(\w+)-(.+)")


@dataclass(frozen=True)
class Operand:
    """A parameter of a kernel, as it lies in memory."""

    name: str  #: x, weight, bias, y; dy, dx; workspace, dweight
    shape: tuple[Any, ...]  #: elements along each axis, the outermost first; the batch size is whatever was given for it
    dtype: str  #: such as "float32"
    role: Literal["input", "workspace", "output"]  #: who fills it: the caller, the kernel for itself, the kernel for the caller
    channel_axis: int  #: the axis that channels lie along

    @property
    def torch_shape(self) -> tuple[Any, ...]:
        """Returns the shape as torch has it: (N, C, H, W) for an image, however it lies in memory."""
        if len(self.shape) < 4:
            return self.shape
        rest = [extent for axis, extent in enumerate(self.shape) if axis != self.channel_axis]
        return (rest[0], self.shape[self.channel_axis], *rest[1:])

    def origin(self, channel: int) -> tuple[int, ...]:
        """Returns the indices of its first element that belongs to a channel."""
        return tuple(channel if axis == self.channel_axis else 0 for axis in range(len(self.shape)))


@dataclass(frozen=True)
class ConvSpec:
    """An oriented depthwise problem; the batch size is not part of it (kernels take N at run time).

    Attributes:
        op: "conv" (x, w -> y), "conv_dx" (dy, w -> dx) or "conv_dw" (x, dy -> dw).
        channels: how many, C.
        height: rows H of x, whatever the op.
        width: columns W of x.
        taps: offsets in pixels of x; K is theirs.
        stride: (vertical, horizontal); one number is taken for both.
        padding_mode: "zeros" or "circular".
        dtype: of the operands and the result: "float32", "float16", "bfloat16" or "float64".
        layout: how images lie in memory, "nchw" or "nhwc" (torch's channels_last); weights are (C, K) in both.
        bias: conv only: whether one value per channel is added to the sums.
        activation: conv only, applied last: "none", "relu", "silu" or "gelu".

    All that follows taps is given by name.

    Raises:
        InvalidArgument: a field breaks its rule.
    """

    op: str
    channels: int
    height: int
    width: int
    taps: Taps
    _: KW_ONLY
    stride: tuple[int, int] = (1, 1)
    padding_mode: str = "zeros"
    dtype: str = "float32"
    layout: str = "nchw"
    bias: bool = False
    activation: str = "none"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("op", self.op, OPS),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("padding_mode", self.padding_mode, PADDING_MODES),
            ("layout", self.layout, LAYOUTS),
            ("activation", self.activation, ACTIVATIONS),
        ):
            if value not in known:
                raise InvalidArgument(f"{name} must be one of {', '.join(known)}, got {value!r}")
        for name in ("channels", "height", "width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidArgument(f"{name} must be a whole number >= 1, got {value!r}")
        object.__setattr__(self, "stride", stride_pair(self.stride))
        if self.op != "conv" and (self.bias or self.activation != "none"):
            raise InvalidArgument(f"only conv has an epilogue, got {self.op} with bias={self.bias} and activation={self.activation!r}")
        if not isinstance(self.taps, Taps):
            raise InvalidArgument(f"taps must be a Taps, got {type(self.taps).__name__}: make one with Taps.oriented or Taps.from_offsets")

    @property
    def out_height(self) -> int:
        """Returns the rows of y: ceil(height / stride)."""
        return -(-self.height // self.stride[0])

    @property
    def out_width(self) -> int:
        """Returns the columns of y: ceil(width / stride)."""
        return -(-self.width // self.stride[1])

    @property
    def kernel_size(self) -> int:
        """Taps per channel K."""
        return self.taps.kernel_size

    @property
    def itemsize(self) -> int:
        """Returns the bytes of one element."""
        return DTYPES[self.dtype]

    @property
    def is_half(self) -> bool:
        """Returns whether elements are of half precision, float16 or bfloat16: sums and staged values are then of another dtype than images."""
        return self.dtype in HALVES

    @property
    def values_per_word(self) -> int:
        """Returns how many whole elements a word of 32 bits holds, the unit of banks and registers: 2 of half precision, 1 of float32, 0 of float64."""
        return _WORD // self.itemsize

    @property
    def sums(self) -> str:
        """Returns the dtype that sums, staged values and conv_dw's partial results are kept in: float32 for the half precisions."""
        return sums_of(self.dtype)

    @property
    def plain(self) -> ConvSpec:
        """Returns the spec without its epilogue: what records are kept of, for the epilogue changes no decision."""
        return dataclasses.replace(self, bias=False, activation="none") if self.bias or self.activation != "none" else self

    @property
    def outputs(self) -> int:
        """Returns the outputs of one image: elements of y; of dx in conv_dx; in conv_dw the pixels of dy that are summed."""
        return self.channels * (self.height * self.width if self.op == "conv_dx" else self.out_height * self.out_width)

    def operands(self, batch: Any, workspace: tuple[int, int] = (1, 1)) -> tuple[Operand, ...]:
        """Returns the parameters of a kernel of this spec, in their order: inputs, then conv_dw's workspace, then the result.

        Args:
            batch: N: a number, or whatever stands for it in a shape.
            workspace: (bands, taps) of conv_dw's partial sums, for each image and channel.
        """
        last = self.layout == "nhwc"
        across = 3 if last else 1

        def image(name: str, role: Literal["input", "output"], *, output: bool) -> Operand:
            return Operand(name, image_shape(self, batch, output=output), self.dtype, role, across)

        def weights(name: str, role: Literal["input", "output"], dtype: str) -> Operand:
            return Operand(name, (self.channels, self.kernel_size), dtype, role, 0)

        if self.op == "conv":
            bias = (Operand("bias", (self.channels,), self.dtype, "input", 0),) if self.bias else ()
            return image("x", "input", output=False), weights("weight", "input", self.dtype), *bias, image("y", "output", output=True)
        if self.op == "conv_dx":
            return image("dy", "input", output=True), weights("weight", "input", self.dtype), image("dx", "output", output=False)
        part = Operand("workspace", part_shape(self, batch, workspace), self.sums, "workspace", across)
        return image("x", "input", output=False), image("dy", "input", output=True), part, weights("dweight", "output", self.sums)

    def bytes_moved(self, batch: int) -> int:
        """Returns the least DRAM traffic in bytes: every operand read or written once."""
        plane = self.height * self.width + self.out_height * self.out_width
        return self.itemsize * self.channels * (batch * plane + self.kernel_size + self.bias)

    def flops(self, batch: int) -> int:
        """Returns two operations per tap and output, colliding taps and taps outside the plane included; the published tables count one (a multiply-add)."""
        return 2 * self.kernel_size * batch * self.channels * self.out_height * self.out_width

    @property
    def op_with_epilogue(self) -> str:
        """Returns the op and what is done to its sums, as a key begins: conv, conv+bias+gelu."""
        return self.op + "+bias" * self.bias + f"+{self.activation}" * (self.activation != "none")

    @kept
    def key(self) -> str:
        """Returns the canonical text form, safe in a file of keys: `conv-c512h56w56-s1-zeros-float32-nchw-k31a22.5`.

        An epilogue stands with the op: `conv+bias+gelu-...`.
        """
        sh, sw = self.stride
        stride = f"{sh}" if sh == sw else f"{sh}x{sw}"
        return f"{self.op_with_epilogue}-c{self.channels}h{self.height}w{self.width}-s{stride}-{self.padding_mode}-{self.dtype}-{self.layout}-{self.taps.key}"

    @classmethod
    def from_key(cls, key: str) -> ConvSpec:
        """Returns the spec that a key names; `ConvSpec.from_key(s.key) == s`.

        Raises:
            InvalidArgument: not a spec key.
        """
        match = _KEY.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            raise InvalidArgument(f"not a spec key: {str(key)[:120]!r}; a key reads like conv-c512h56w56-s1-zeros-float32-nchw-k31a22.5")
        op, bias, activation, c, h, w, sh, sw, padding, dtype, layout, taps = match.groups()
        stride = (int(sh), int(sw or sh))
        return cls(
            op, int(c), int(h), int(w), Taps.from_key(taps), stride=stride, padding_mode=padding, dtype=dtype, layout=layout, bias=bias is not None,
            activation=activation or "none",
        )  # fmt: skip

    @staticmethod
    def op_of_key(key: str) -> str:
        """Returns the op of a spec key, or of the key of a generic kernel, which begins alike; nothing else of it is read.

        Raises:
            InvalidArgument: it begins with no op.
        """
        op = key.partition("-")[0].partition("+")[0]
        if op not in OPS:
            raise InvalidArgument(f"a spec key starts with one of {', '.join(OPS)}, got {key[:120]!r}: use ConvSpec.key")
        return op

    @staticmethod
    def family_of_key(key: str) -> tuple[str, str]:
        """Returns the two ends of a spec key, around channels, height and width: shapes of one problem share them. The key is not checked."""
        op, _, rest = key.partition("-")
        return op, rest.partition("-")[2]

    def parts(self) -> list[tuple[int, int, ConvSpec]]:
        """Returns the layer cut by angle: (first channel, stop channel, spec of that group alone over all channels).

        A part keeps the layer's channel count, so that a record tuned for one angle serves every layer that has it.
        """
        ranges = self.taps.channel_ranges(self.channels)
        return [(lo, hi, dataclasses.replace(self, taps=self.taps.group(g))) for g, (lo, hi) in enumerate(ranges) if hi > lo]

    def __str__(self) -> str:
        return self.key


def image_shape(spec: ConvSpec, batch: Any, *, output: bool) -> tuple[Any, ...]:
    """Extents of x, or of y (output), of a spec in the order in which they lie in memory."""
    height, width = (spec.out_height, spec.out_width) if output else (spec.height, spec.width)
    return (batch, height, width, spec.channels) if spec.layout == "nhwc" else (batch, spec.channels, height, width)


def part_shape(spec: ConvSpec, batch: Any, workspace: tuple[int, int]) -> tuple[Any, ...]:
    """Extents of conv_dw's workspace: (bands, taps) for each image and channel."""
    return (batch, *workspace, spec.channels) if spec.layout == "nhwc" else (batch, spec.channels, *workspace)


def sums_of(dtype: str) -> str:
    """Returns the dtype that sums of a dtype are kept in."""
    return dtype if DTYPES[dtype] >= 4 else "float32"


def stride_pair(stride: Any) -> tuple[int, int]:
    """Returns an int or a pair as (vertical, horizontal).

    Raises:
        InvalidArgument: not whole, or < 1.
    """
    if type(stride) is int and stride >= 1:  # the common case, in every call: True is an int, but not of type int
        return (stride, stride)
    pair = (stride, stride) if isinstance(stride, int) else tuple(stride) if isinstance(stride, tuple | list) else ()
    if len(pair) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in pair):
        raise InvalidArgument(f"stride must be a whole number >= 1 or a pair of them, got {stride!r}")
    return (pair[0], pair[1])
