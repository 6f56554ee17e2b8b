"""Text and names of others (documents, domains, targets), made fit for where they are shown.

A terminal must not obey them, Markdown and a figure must not read markup in them. HTML is made by
jinja2, which escapes by itself.
"""

import html
import re

from rich.text import Text


def plain(text: str) -> str:
    """The text on one line; a dot for every character that is not printed, ESC among them."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """The text with its line breaks; a dot for every other character that is not printed."""
    return "".join(c if c.isprintable() or c == "\n" else "." for c in text)


def on_terminal(text: str) -> Text:
    """For a rich table or line, which takes no markup from it."""
    return Text(plain(text))


def in_markdown(text: str) -> str:
    """For a paragraph or a cell: no HTML, no link, no border of a cell."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(plain(text), quote=False))


def in_code(text: str) -> str:
    """For a cell of a Markdown table, between backticks, where nothing can be escaped."""
    return plain(text).replace("|", "/").replace("`", "'")


def in_figure(text: str) -> str:
    """For a label of matplotlib, which reads mathematics between dollars."""
    return plain(text).replace("$", r"\$")
