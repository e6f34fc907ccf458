"""From a checkpoint to a ``.dbb``, without PyTorch: sources, calibration, the fit of planes, and
how many of them each matrix gets.

May ask: model, ops, format, text.
"""
