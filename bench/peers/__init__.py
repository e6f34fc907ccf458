"""The bench against other engines: ``python -m bench.peers``, or ``make bench-peers``.

Every engine runs in a worker process of its own (``worker``), one for each weight format, loaded
once. ``runner`` goes round them all, round after round, so that a slow minute of the machine hits
everyone; ``results`` takes medians and ratios within rounds; ``targets`` and ``report`` write them
down.
"""
