"""From a checkpoint to a ``.dbb``: sources, calibration, the FDB fit, export and training."""
