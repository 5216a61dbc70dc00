"""The one family of exceptions that the package raises for what a user can mend.

Each message states the rule, the value that came, and the next step. Every class is exported by tvm_orient itself.
"""

from __future__ import annotations


class OrientError(Exception):
    """Base of every error that tvm_orient raises on purpose."""


class InvalidArgument(OrientError, ValueError):
    """An argument breaks a rule of the operator (shape, dtype, angle, stride, key...)."""


class Unsupported(OrientError, NotImplementedError):
    """A valid problem that no template can serve on this device."""


class LogFileError(OrientError):
    """A tuning log that cannot be read or written as a whole (single bad lines are only counted)."""


class BuildFailed(OrientError, RuntimeError):
    """The compiler refused a kernel; carries what it said."""


class EnvironmentProblem(OrientError, RuntimeError):
    """This machine lacks something, or has a version known to crash; says what to install."""


class LaunchFailed(OrientError, RuntimeError):
    """A GPU's driver refused to load a kernel or to launch it; says which kernel, and what the driver answered."""


class TuningFailed(OrientError, RuntimeError):
    """A tuning run found no kernel that builds, runs and passes the check."""


def first_line(problem: BaseException) -> str:
    """The first line of what an error says, for a table: at most 300 characters; its kind where it says nothing."""
    return (_lines(problem) or [repr(problem)])[0][:300]


def last_line(problem: BaseException) -> str:
    """The last line of what an error says, which is where compilers say what is wrong; its kind where it says nothing."""
    return (_lines(problem) or [repr(problem)])[-1]


def _lines(problem: BaseException) -> list[str]:
    return [line.strip() for line in str(problem).splitlines() if line.strip()]
