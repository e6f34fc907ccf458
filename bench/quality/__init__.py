"""The bench of quality against llama.cpp: ``python -m bench.quality``, or ``make bench-quality``.

Both engines quantize the same teacher by the same calibration text (``teachers``), and both are
compared with the very same predictions of it (``llama_cpp``, ``ours``). ``speed`` has them decode
in turns, by the workers of ``bench.peers``; ``zeroshot`` asks questions. Every finished figure is a
line of a file (``rows``), and ``report`` and ``plot`` write down what is there.
"""
