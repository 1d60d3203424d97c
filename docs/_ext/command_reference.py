#!/usr/bin/env python3
"""Writes the reference of the command line into its page, from the commands' own help.

    python docs/_ext/command_reference.py

The reference is the text between the two marks of ``docs/reference/command-line.md``. A test fails
if it is out of date. This needs the extra ``cli``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from anyio_sendproducer.cli._commands import NAME, command
from anyio_sendproducer.cli._options import Command

PAGE = Path(__file__).parents[1] / "reference" / "command-line.md"
BEGIN = "<!-- made by docs/_ext/command_reference.py: begin -->\n"
END = "<!-- made by docs/_ext/command_reference.py: end -->\n"


def reference() -> str:
    """The reference, in MyST Markdown."""
    context = click.Context(command, info_name=NAME, **command.context_settings)
    parts: list[str] = []
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert isinstance(found, Command)  # noqa: S101
        with click.Context(found, info_name=name, parent=context) as own:
            parts.extend(_command(own, found))
    return "\n".join(parts)


def _command(context: click.Context, found: Command) -> Iterator[str]:
    yield f"## {context.command_path}\n"
    words = " ".join([context.command_path, *found.collect_usage_pieces(context)])
    yield f"```console\n$ {words}\n```\n"
    for paragraph in inspect.cleandoc(found.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield f"```console\n{inspect.cleandoc(paragraph[2:])}\n```\n"
        else:
            yield f"{_marked(paragraph)}\n"
    for section, records in found.sections(context).items():
        yield f"**{section}**\n"
        for names, text in records:
            yield f"`{names}`\n: {_marked(text)}\n"
    yield "**Exit codes**\n"
    yield "| code | meaning |\n|---|---|"
    for code, meaning in found.exit_codes.items():
        yield f"| {code} | {meaning} |"
    yield ""


def _marked(text: str) -> str:
    """Options and escapes are code."""
    text = re.sub(r"(?<!\S)(\\(?:\\|\w+))", r"`\1`", text)
    return re.sub(r"(?<![\w`-])(--?[A-Za-z][\w-]*(?: \w+[.=]\S+[\w]| failed\b)?)", r"`\1`", text)


def page(text: str) -> str:
    """A page with the reference in its place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{reference()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
