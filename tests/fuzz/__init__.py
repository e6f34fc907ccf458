"""Mutated files for every reader: ``make fuzz SECONDS=600``, or ``python -m tests.fuzz --help``.

``docs/security.md`` says how it works and what was found. ``mutators`` change bytes and JSON, a
file of ``kinds`` knows one kind of input: how to make one from a seed and what to do with it;
``runner`` does so in watched processes, and ``report`` keeps findings and prints the table.
"""
