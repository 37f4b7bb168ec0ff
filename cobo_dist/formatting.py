"""Numbers in readable units, text in Markdown and LaTeX, and what a table's ± means."""

from __future__ import annotations

import re

_MARKDOWN = re.compile(r"[\\|<$`]|(?<!\w)_|_(?!\w)")  # an underscore inside a word means nothing
_LATEX = {
    **{one: f"\\{one}" for one in "$&#_%{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "\u2212": "$-$",
    },
    **{one: f"{{{one}}}" for one in "[]*"},  # after the end of a row they would be arguments of it
}

INTERVAL_NOTE = (
    "mean over seeds ± half the width of its 95% confidence interval (Student's t; none for one seed). With "
    "two seeds that is 9 times their standard deviation, with three 2.5 times."
)
"""What ± means in every table."""


def human_bytes(count: float) -> str:
    """Return a number of bytes in a readable unit (powers of 1000).

    >>> human_bytes(1_500_000)
    '1.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def markdown_text(text: str) -> str:
    r"""Return text for a table or heading in Markdown, in which it shows as it is; `**bold**` stays bold.

    >>> markdown_text("**_a_ | <b> $x_1$**")
    '**\\_a\\_ \\| \\<b> \\$x_1\\$**'
    """
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.splitlines()))


def latex_text(text: str) -> str:
    r"""Return text for LaTeX, in which it shows as it is; `**bold**` is bold.

    >>> print(latex_text("**50% ± 2**"), latex_text("a_b & [c]"))
    \textbf{50\% $\pm$ 2} a\_b \& {[}c{]}
    """
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        return rf"\textbf{{{latex_text(text[2:-2])}}}"
    printed = "".join(one if one.isprintable() else " " for one in text)
    shown = "".join(_LATEX.get(one, one) for one in " ".join(printed.split()))
    return re.sub("-(?=-)", "-{}", shown)  # two hyphens would become a dash
