"""From a checkpoint to a ``.dbb``: reading sources, calibration, the FDB fit, export and training."""
