"""Tuned kernels for oriented depthwise convolution. See README.md."""

from pathlib import Path

# a checkout keeps schedules/ and tuning_logs/ beside the package; a wheel carries them inside it
_here = Path(__file__).resolve().parent
if not (_here / "schedules").is_dir() and (_here.parent / "pyproject.toml").is_file():
    __path__.append(str(_here.parent))
