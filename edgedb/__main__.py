"""``python -m edgedb`` is the command ``edgedb``."""

from .cli.commands import main

main(prog_name="edgedb")
