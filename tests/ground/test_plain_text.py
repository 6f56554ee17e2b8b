"""Text and names of others are shown as text: no markup, no control characters, no HTML."""

import io

import pytest
from rich.console import Console

from inrun.plain_text import in_code, in_figure, in_markdown, on_terminal, plain, printable

EVIL = [
    r"so \[/x\] is",
    "[/b]",
    r"a \[bold red]word[/] b",
    "\x1b[2J\x1b]0;t\x07",
    "[link=file:///etc]x[/link]",
]


@pytest.mark.parametrize("text", EVIL)
def test_terminal_shows_what_is_there(text):
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=160).print(on_terminal(text))
    assert plain(text) in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
    assert "\x1b]" not in out.getvalue()


def test_markdown_takes_no_html_no_link_and_no_border():
    assert in_markdown("<img src=x>") == "&lt;img src=x&gt;"
    assert in_markdown("a|b\n[c](d)") == r"a\|b \[c\](d)"
    assert in_markdown("`x`") == r"\`x\`"
    assert in_code("a|`b`\x1b") == "a/'b'."


def test_figure_reads_no_mathematics():
    assert in_figure("a $x$") == r"a \$x\$"


def test_terminal_gets_line_breaks_and_nothing_else_that_it_obeys():
    assert printable("a\nb\x1b[2Jc\rd\x07") == "a\nb.[2Jc.d."
