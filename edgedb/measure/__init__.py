"""Quality and speed of a model, and what runs it here: the figures behind ``edgedb eval``,
``edgedb bench`` and ``edgedb info``.

May ask: run, model, ops, format, text.
"""
