"""``python -m edgedb`` is the command ``edgedb``."""

from .cli import main

main(prog_name="edgedb")
