"""Files that travel inside the package: the base model, templates, DeepSpeed files. They are only located here."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
EMBEDDED_MODELS = ("nano-mistral",)


def embedded_model(name: str) -> Path | None:
    """Folder of the embedded model called ``name``, or None when no embedded model has that name."""
    return _HERE / name if name in EMBEDDED_MODELS else None


def template_names() -> list[str]:
    """Names of the templates that ship with tunesmith."""
    return sorted(path.stem for path in (_HERE / "templates").iterdir())


def template(name: str) -> Path | None:
    """File of the template called ``name`` (jinja for chats, a text for one question and answer), or None."""
    return next((path for path in (_HERE / "templates").iterdir() if path.stem == name), None)


def deepspeed_names() -> list[str]:
    """Names of the DeepSpeed configurations that ship with tunesmith."""
    return sorted(path.stem for path in (_HERE / "deepspeed").iterdir())


def deepspeed(name: str) -> Path | None:
    """File of the DeepSpeed configuration called ``name``, or None."""
    return _HERE / "deepspeed" / f"{name}.json" if name in deepspeed_names() else None
