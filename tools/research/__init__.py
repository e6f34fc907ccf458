"""What the paper left open, asked by measurement: ``docs/research.md`` has the questions.

``python -m tools.research NAME``; a line of JSON for everything that was measured goes into one
file, and what is in it is not measured again.
"""
