"""Kinds of values that settings share, and what a section of them is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every generator of random numbers takes, numpy's included."""
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
DType = Literal["auto", "float32", "bfloat16", "float16"]


Expression = Annotated[str, Field(pattern=r"[\\^$*+?(|]")]
"""A regular expression: no name of a module has such characters."""


class Section(BaseModel):
    """A group of settings: frozen, strictly typed, closed to unknown names."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )
