"""The app that every verb registers with, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import codecs
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import InvalidArgument, OrientError

# as a user meets them; help lists them so
ORDER = ("doctor", "show", "tune", "build", "explain", "check", "bench", "logs", "cache", "demo")


# what stands for a character that a terminal of another encoding than UTF-8 lacks; a question mark stands for all others
_SPELLED = {"\N{DEGREE SIGN}": " deg", "\N{MULTIPLICATION SIGN}": "x", "\N{MICRO SIGN}": "u", "\N{HORIZONTAL ELLIPSIS}": "...", "\N{EN DASH}": "-"}


class Verbs(TyperGroup):
    """The verbs. Exit codes: 0 fine, 1 something failed or was found wrong, 2 an invalid argument."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in ORDER if name in self.commands]

    def invoke(self, ctx: Any) -> Any:
        _spell()
        try:
            return super().invoke(ctx)
        except OrientError as problem:
            raise stopped(str(problem), 2 if isinstance(problem, InvalidArgument) else 1) from problem
        except KeyboardInterrupt as problem:
            raise stopped("interrupted", 1) from problem
        except ModuleNotFoundError as problem:
            if problem.name is None or problem.name.partition(".")[0] == "tvm_orient":
                raise  # ours, so a bug
            raise stopped(f"this needs {problem.name}, which is not installed: `tvm-orient doctor` says how to get it", 1) from problem
        except BrokenPipeError:
            raise  # the reader went away: typer ends quietly
        except OSError as problem:
            raise stopped(f"{problem.filename or 'the system'}: {problem.strerror or problem}", 1) from problem


def _spell() -> None:
    """Has standard output and error spell what their encoding lacks, instead of failing at it."""

    def spelled(problem: UnicodeError) -> tuple[str, int]:
        if not isinstance(problem, UnicodeEncodeError):
            raise problem
        return "".join(_SPELLED.get(letter, "?") for letter in problem.object[problem.start : problem.end]), problem.end

    codecs.register_error("tvm_orient", spelled)
    for stream in (sys.stdout, sys.stderr):
        if codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name != "utf-8" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="tvm_orient")


def stopped(message: str, code: int) -> typer.Exit:
    """Says what went wrong, on standard error and without a traceback; raise what it returns."""
    complain(message)
    return typer.Exit(code)


def complain(message: str) -> None:
    """Prints one error on standard error, on one line however long, so that it can be searched for."""
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {message}", err=True)


def examples(*commands: str) -> str:
    """Returns the end of a verb's help."""
    title = "Example" if len(commands) == 1 else "Examples"
    return "\n\n".join([f"[bold]{title}[/bold]", *(f"[cyan]$ tvm-orient {command}[/cyan]" for command in commands)])


app = typer.Typer(
    cls=Verbs,
    name="tvm-orient",
    help="Tuned kernels for oriented depthwise convolution. Angles are in DEGREES here, counter-clockwise with y up.",
    epilog=examples("doctor", "tune --op all --channels 512 --height 14 --width 14 --kernel-size 31", "COMMAND --help"),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # whatever still gets out is a bug, and a plain traceback is the best report
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"tvm-orient {__version__}")
        raise typer.Exit


@app.callback()
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)] = False) -> None:
    pass
