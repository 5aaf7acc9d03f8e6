"""How templates of ours are rendered: an unknown name is an error, and their own lines leave no blanks behind."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment(package: str, folder: str, *, autoescape: bool, **more: Any) -> Environment:
    """Templates that come with a package.

    Args:
        package: dotted name.
        folder: where they lie in it.
        autoescape: whether values are escaped as HTML wants it; other languages have filters for what they write.
        **more: further settings of jinja's ``Environment``.
    """
    return Environment(
        loader=PackageLoader(package, folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=autoescape,  # noqa: S701 - said by who knows the language
        **more,
    )
