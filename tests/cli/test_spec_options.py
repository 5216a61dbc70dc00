"""Problems on the command line: options, keys and files of keys make specs, and bad ones are named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.support.command_line import KEY, TINY, keys, orient
from tvm_orient.problem.spec import OPS, ConvSpec


@pytest.mark.parametrize(
    ("args", "tail"),
    [
        ((), "-c8h6w5-s1-zeros-float32-nchw-k3a0_22.5_45_67.5_90_112.5_135_157.5"),
        (("--angles", "0, 30"), "-c8h6w5-s1-zeros-float32-nchw-k3a0_30"),
        (("--angles=-90",), "-c8h6w5-s1-zeros-float32-nchw-k3a270"),
        (("--angles", "0", "--stride", "2x1", "--dilation", "2"), "-c8h6w5-s2x1-zeros-float32-nchw-k3d2a0"),
        (("--angles", "0", "--stride", "2", "--padding-mode", "circular", "--dtype", "float64"), "-c8h6w5-s2-circular-float64-nchw-k3a0"),
        (("--angles", "0", "--layout", "nhwc"), "-c8h6w5-s1-zeros-float32-nhwc-k3a0"),
    ],
)
def test_options_make_specs(args: tuple[str, ...], tail: str) -> None:
    wanted = ConvSpec.from_key("conv" + tail)
    assert [ConvSpec.from_key(key) for key in keys(*TINY, *args)] == [wanted]
    assert [ConvSpec.from_key(key) for key in keys(*TINY, *args, "--op", "all")] == [dataclasses.replace(wanted, op=op) for op in OPS]


def test_epilogues() -> None:
    plain = "-c8h6w5-s1-zeros-float32-nchw-k3a0"
    assert keys(*TINY, "--angles", "0", "--epilogue", "bias+gelu") == ["conv+bias+gelu" + plain]
    assert keys(*TINY, "--angles", "0", "--epilogue", "bias") == ["conv+bias" + plain]
    assert keys(*TINY, "--angles", "0", "--epilogue", "relu", "--op", "all") == ["conv+relu" + plain, "conv_dx" + plain, "conv_dw" + plain]


def test_specs_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    flat, weights = (f"{op}-c8h6w5-s1-zeros-float32-nchw-k3a0" for op in ("conv", "conv_dw"))
    file.write_text(f"# two problems\n\n{flat}  # flat\n{weights}\n\n{flat}\n")
    assert keys("--specs", file) == [flat, weights]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--kernel-size", "4"), "kernel_size must be odd so that a centre tap exists, got 4"),
        (("--kernel-size", "0"), "'--kernel-size': must be a whole number >= 1, got '0'"),
        (("--channels", "many"), "'--channels': must be a whole number >= 1, got 'many'"),
        (("--channels", "7"), "got 8 angles for 7 channels"),
        (("--angles", "0,nan"), "--angles takes finite numbers of degrees separated by commas, got 'nan'"),
        (("--angles", "inf"), "got 'inf'"),
        (("--angles", ""), "got ''"),
        (("--angles", "0;45"), "got '0;45'"),
        (("--stride", "0"), "--stride takes a whole number >= 1, or two of them (vertical x horizontal), got '0'"),
        (("--stride", "1x2x3"), "got '1x2x3'"),
        (("--dtype", "int8"), "dtype must be one of float64, float32, float16, bfloat16, got 'int8'"),
        (("--layout", "chwn"), "layout must be one of nchw, nhwc, got 'chwn'"),
        (("--epilogue", "bias+tanh"), "--epilogue takes bias, relu, silu, gelu, or bias and one of them, got 'bias+tanh'"),
        (("--epilogue", "gelu+bias"), "got 'gelu+bias'"),
        (("--op", "conv_dw", "--epilogue", "bias"), "only conv has an epilogue, got conv_dw"),
        (("--op", "pool"), "op must be one of conv, conv_dx, conv_dw, got 'pool'"),
        (("--padding-mode", "mirror"), "padding_mode must be one of zeros, circular, got 'mirror'"),
        (("--arch", "sm_77"), "unknown arch 'sm_77'"),
        (("--target", "tpu"), "target must be auto, cpu, cuda or an arch such as sm_90a, got 'tpu'"),
        (("--target", "cpu", "--arch", "sm_90a"), "got both (cpu, sm_90a)"),
        (("--mode", "guess"), "mode must be one of strict, nearest, default, got 'guess'"),
        (("--specs", "keys.txt"), "got --channels, --height, --width, --kernel-size too"),
    ],
)
def test_bad_problems_name_the_value(args: tuple[str, ...], says: str) -> None:
    result = orient("explain", *TINY, *args, code=2)
    assert says in result.stderr
    assert result.stdout == ""


def test_missing_options_are_named() -> None:
    said = orient("tune", "--channels", 8, "--width", 5, code=2).stderr
    assert "got no --height, --kernel-size" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file or directory"),
        (b"\xff\xfe\0", "it is not UTF-8 text"),
        (b"# nothing\n", "got none in"),
        (b"\nconv-c8h6w5-s1-zeros-float32-nchw-k3a0\nconv-c8\n", "keys.txt, line 3: not a spec key: 'conv-c8'"),
        (b"conv-c8h6w5-s1-zeros-int8-nchw-k3a0", "keys.txt, line 1: dtype must be one of float64, float32, float16, bfloat16, got 'int8'"),
    ],
)
def test_bad_specs_files_are_named(content: bytes | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    if content is not None:
        file.write_bytes(content)
    said = orient("build", "--specs", file, code=2).stderr
    assert says in said
    assert "keys.txt" in said
    assert len(said.splitlines()) == 1


def test_a_spec_stands_for_the_options() -> None:
    dw = KEY.replace("conv", "conv_dw")
    assert keys(KEY, dw, KEY) == [KEY, dw]
    assert f"{dw.partition('-')[0]}  8 x 6 x 5  K=3" in orient("explain", dw, "--target", "cpu").stdout
    assert "stands alone, got --channels, --specs too" in orient("explain", KEY, "--channels", 8, "--specs", "keys.txt", code=2).stderr
    assert "not a spec key: 'conv'" in orient("explain", "conv", code=2).stderr
    assert "conv-c8" in orient("build", "conv-c8", code=2).stderr
