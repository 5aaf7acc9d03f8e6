"""What tests of pages share: colour schemes of the browser, and whether a colour can be read on another."""

from __future__ import annotations

import re

SCHEMES = {"light": 1, "dark": 0}
"""Chromium's numbers of colour schemes."""


def contrast(one: str, other: str) -> float:
    """Contrast of two opaque colours (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
