"""What `inrun` understands, and how its errors end."""

from __future__ import annotations

import typer

from inrun.command import doctor, export, questions, report, texts, training

app = typer.Typer(
    name="inrun",
    help="What the chunks of a run were worth. Every command takes the folder of a run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (training, report, questions, texts, export, doctor):
    module.register(app)


def main() -> None:
    """The command `inrun`: an error that a user can mend is one message and status 1."""
    try:
        app()
    except Exception as error:
        from inrun.command.errors import ended  # torch is imported for no mere question

        ended(error)
