"""Writes docs/templates.md: every template by its own docstring, with what it serves and its knobs.

    python docs/templates_page.py

The text of a template stands in the docstring of its class in schedules/, beside the code that it describes; the meaning of a knob is the
comment of its field in the template's dataclass of decisions. Neither torch nor a compiler is loaded.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from tvm_orient.problem.device import arch_device, recorded_device
from tvm_orient.problem.spec import DTYPES, LAYOUTS, OPS, ConvSpec, sums_of
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules.base import Generic, Template
from tvm_orient.schedules.registry import GENERIC, TEMPLATES

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "templates.md"
_LAYOUTS = {"nchw": "contiguous", "nhwc": "channels_last"}
_KINDS = {"cpu": "CPU", "cuda": "GPU"}
_DEVICES = {"cpu": recorded_device("cpu-amd-epyc-avx2-2c", "avx2", 2), "cuda": arch_device("sm_90a")}  # templates are asked for their knobs on these
_FIELD = re.compile(r"^    (\w+): int\b[^#]*#: (.*)$", flags=re.M)
_INTRODUCTION = """\
<!-- written by docs/templates_page.py from the docstrings in schedules/: change those, and run it again -->

# Templates

A template is one hand-written way to schedule the kernel of one angle: it says which problems it serves, which knobs it has, what it takes
without tuning, and how the loops are laid out. All templates have the offsets as constants in the code, and no test inside the tap loop. The
knobs of each template are what tuning chooses, and a record names the template, its version, and a value for each knob.

`tvm-orient explain ...` says which template serves a problem, with which values, and why others do not. [Performance](performance.md) says how
the choice is made where nothing is tuned. [Add a template](contributing/template.md) says how to write another one. Words such as stage, halo, band and patch
stand in the [glossary](glossary.md).
"""


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page())


def page() -> str:
    """Returns the text of the page."""
    return "\n".join([_INTRODUCTION, *_overview(), "", *(line for template in _all() for line in _section(template))]).rstrip("\n") + "\n"


def _all() -> tuple[Template | Generic, ...]:
    """Returns the templates in the order in which they are asked, CPU first, and after them the kernels that run what all decline."""
    return (*TEMPLATES, *GENERIC.values())


def _overview() -> Iterator[str]:
    """Yields the lines of the table of all templates."""
    yield "| name in records | device | ops | layout | dtypes | file |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for template in _all():
        cells = (f"[`{template.name}`](#{template.name})", _KINDS[template.kind], _ops(template), _layouts(template), _dtypes(template), f"`{_file(template)}`")
        yield f"| {' | '.join(cells)} |"


def _section(template: Template | Generic) -> Iterator[str]:
    """Yields the lines of the section of one template."""
    yield from (f"## `{template.name}`", "", f"Version {template.version}, for a {_KINDS[template.kind]}; in `{_file(template)}`.", "")
    doc = inspect.cleandoc(type(template).__dict__["__doc__"])
    yield from ("\n\n".join(" ".join(paragraph.split()) for paragraph in doc.split("\n\n")), "")
    if isinstance(template, Generic):
        yield from ("It has no knobs.", "")
        return
    names, meanings = _knobs(template), _meanings(template)
    if not meanings:
        yield from ("Knobs: " + ", ".join(f"`{name}`" for name in names) + ".", "")
        return
    yield from ("| knob | meaning |", "| --- | --- |")
    yield from (f"| `{name}` | {meanings[name]} |" for name in names)
    yield ""


def _ops(template: Template | Generic) -> str:
    ops = OPS if isinstance(template, Generic) else template.ops
    return ", ".join(f"`{op}`" for op in ops)


def _layouts(template: Template | Generic) -> str:
    layouts = LAYOUTS[:1] if isinstance(template, Generic) else template.layouts
    return ", ".join(_LAYOUTS[layout] for layout in layouts)


def _dtypes(template: Template | Generic) -> str:
    return ", ".join(dtype for dtype in DTYPES if isinstance(template, Generic) or sums_of(dtype) in template.sums)


def _file(template: Template | Generic) -> str:
    return Path(inspect.getfile(type(template))).resolve().relative_to(ROOT).as_posix()


def _knobs(template: Template) -> list[str]:
    """Returns the names of the knobs, in their order: the same for every problem, so a small one is asked about."""
    spec = ConvSpec(template.ops[0], 32, 7, 7, Taps.oriented(0.0, 7), layout=template.layouts[0])
    return list(template.knobs(spec, _DEVICES[template.kind]))


def _meanings(template: Template) -> dict[str, str]:
    """Returns what each knob means: the comments of the fields of the template's dataclass of decisions, and of those that it extends."""
    config = getattr(template, "config_type", None)
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__) if config else ():
        if cls.__module__.startswith("tvm_orient.schedules"):
            found |= dict(_FIELD.findall(inspect.getsource(cls)))
    return found


if __name__ == "__main__":
    main()
