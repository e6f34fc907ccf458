"""From a checkpoint to a ``.dbb``: sources, calibration, the FDB fit, export and training."""

import sys

if sys.argv[0] == "-m":  # one of these modules is a command, and its imports are to come
    from edgedb.cli.command_line import meet_import_errors

    meet_import_errors("error")
