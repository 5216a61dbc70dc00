"""Numbers with their units as the command line prints them."""

from __future__ import annotations

from tvm_orient.cli.output import angle, duration, microseconds, size, speedup
from tvm_orient.problem.taps import Taps


def test_units() -> None:
    assert [duration(value) for value in (None, 0.04, 59.94, 59.96, 65)] == ["-", "0.0 s", "59.9 s", "1 min 00 s", "1 min 05 s"]
    assert [duration(value) for value in (3600, 7384)] == ["1 h 00 min", "2 h 03 min"]
    assert [microseconds(value) for value in (None, 1.234, 12.34, 123.4, 1234.0, 123400.0)] == ["-", "1.23 us", "12.3 us", "123 us", "1.23 ms", "123 ms"]
    assert [size(value) for value in (0, 999, 1000, 34003, 12_345_678, 3 * 10**9)] == ["0 B", "999 B", "1.0 kB", "34.0 kB", "12.3 MB", "3.0 GB"]
    assert [speedup(20.0, 10.0), speedup(None, 10.0), speedup(20.0, None)] == ["2.00x", "-", "-"]
    assert angle(Taps.from_key("k3a0_45")) == "0° 45°"
    assert angle(Taps.from_key("t0.0.0.7.-1.2")) == "free"
