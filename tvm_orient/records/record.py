"""Record: one tuned choice, with where and how it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import InvalidArgument
from ..problem.spec import ConvSpec

SCHEMA: Final = 1  # number of the fields that a record has; lines of another are only counted
SLUG = r"[A-Za-z0-9][A-Za-z0-9_.-]*"  # one folder name: no separator, not hidden

Microseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Slug = Annotated[str, Field(pattern=f"^{SLUG}$")]


class Record(BaseModel):
    """One tuned choice for a single-group spec on one device; fields that this version does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, validate_by_name=True, validate_by_alias=True)

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")  #: called "schema" in JSON
    spec: str  #: `tvm_orient.ConvSpec.key`
    template: Annotated[str, Field(min_length=1)]  #: its name
    template_version: int  #: raised when the same decisions come to mean another kernel
    decisions: dict[str, int | str]  #: the named choices
    device: Slug  #: its folder name, see `tvm_orient.problem.device.Device`
    median_us: Microseconds  #: time of one launch with a cold cache
    spread_us: NotNegative  #: how much it varied; zero where every run fell in the same tick of the timer
    default_us: Microseconds  #: of the untuned choice in the same run
    floor_us: Microseconds  #: bytes moved over the measured copy bandwidth
    error: NotNegative  #: relative, against the reference
    #: gpu, cc, units, driver, cuda, tvm, tvm_ffi, version, date (ISO 8601), trials, seed; alias and nearest need cc and units
    provenance: dict[str, Any]

    @field_validator("spec")
    @classmethod
    def _one_group(cls, value: str) -> str:
        spec = ConvSpec.from_key(value)
        if spec.taps.groups != 1:
            raise InvalidArgument(f"a record serves one angle group, got {spec.taps.groups} in {value[:120]!r}: make one record for each of spec.parts()")
        if spec.key != value:
            raise InvalidArgument(f"a record needs the canonical spec key {spec.key[:120]!r}, got {value[:120]!r}")
        return value

    @model_validator(mode="after")
    def _has_a_line(self) -> Record:
        try:
            _ = self.line
        except (TypeError, RecursionError) as problem:
            raise ValueError(f"a record must be plain JSON: {problem}") from problem
        return self

    @property
    def identity(self) -> tuple[str, str, int, str]:
        """Returns (spec, template, template_version, device): two records with the same one are two tries at the same thing."""
        return (self.spec, self.template, self.template_version, self.device)

    @property
    def date(self) -> str:
        """Returns when it was measured; empty where the provenance does not say."""
        return str(self.provenance.get("date", ""))

    @property
    def line(self) -> str:
        """Returns canonical JSON without the newline: sorted keys, no spaces, ASCII, no NaN."""
        return json.dumps(self.model_dump(by_alias=True), sort_keys=True, separators=(",", ":"), allow_nan=False)


# ---- sets of records ----------------------------------------------------------------------------


def in_order(records: Iterable[Record]) -> list[Record]:
    """Return records in the order of files: by identity, then by line."""
    return sorted(records, key=lambda record: (record.identity, record.line))


def ranked(records: Iterable[Record]) -> list[Record]:
    """Returns the records, best first: lowest median, then newest, then canonical JSON, so that the order of the input never matters."""
    rows = sorted(sorted(records, key=lambda record: record.line), key=lambda record: record.date, reverse=True)
    return sorted(rows, key=lambda record: record.median_us)
