"""One spelling for equal numbers, and for expressions that differ in nothing but looks.

It finds no answer in a text (``answers`` does); it is given the number or the expression alone.
"""

from __future__ import annotations

import re
from fractions import Fraction

_MAX_NUMBER_LENGTH = 200
"""Longer runs of digits are a model that repeats itself, not a number."""


def canonical_number(text: str) -> str | None:
    """``1,080.50``, ``$1080.5``, ``2161/2`` -> ``2161/2``; None when ``text`` is not one number.

    Commas between thousands, a currency sign, a percent sign and a final dot are ignored.
    """
    cleaned = text.replace("\u2212", "-").replace("{,}", ",").replace("\\!", "")
    cleaned = re.sub(r"\\?[$%]", "", cleaned).strip().rstrip(".")
    cleaned = re.sub(r"(?<=\d),(?=\d{3})|\s*(?=/)|(?<=/)\s*", "", cleaned)
    latex = re.fullmatch(r"([-+]?)\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", cleaned)
    if latex:
        cleaned = f"{latex.group(1)}{latex.group(2)}/{latex.group(3)}"
    if not cleaned or len(cleaned) > _MAX_NUMBER_LENGTH:
        return None
    if not re.fullmatch(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d{1,2})?(?:/(?:\d+(?:\.\d*)?|\.\d+))?", cleaned, re.I):
        return None
    numerator, _, denominator = cleaned.partition("/")
    try:
        return str(Fraction(numerator) / Fraction(denominator or "1"))
    except ZeroDivisionError:
        return None


_SPELLINGS = (
    (
        re.compile(
            r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[!,;:]|\^\s*(?:\\circ|\{\s*\\circ\s*\})|[\u00b0]|\\?\$|\\?%"
        ),
        "",
    ),
    (re.compile(r"\\[dt]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac(?![a-zA-Z])\s*(\w)\s*(\w)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\sqrt\s*(\w)"), r"\\sqrt{\1}"),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"^\s*[a-zA-Z]\s*=(?!=)"), ""),
    (re.compile(r"\s*([^\w\s])\s*"), r"\1"),
    (re.compile(r"\s+"), " "),
)
"""Spellings of one expression that differ in nothing but looks, and what becomes of them, in this order."""


def canonical_expression(text: str) -> str:
    """An expression or a choice as text, without differences of looks alone: equal texts count as the same answer.

    It follows the string comparison of MATH (Hendrycks et al. 2021): spacing and sizes of LaTeX, ``\\text``, dollar,
    degree and percent signs, ``\\dfrac``, ``\\frac12``, ``\\sqrt2``, a leading ``x =`` and case do not count. Nothing
    is computed: ``2x`` and ``x + x`` differ.
    """
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text.strip(" .").lower()
