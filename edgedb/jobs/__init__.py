"""Many requests from a file: read, put in order, answered on this machine or on a cluster, written
so that nothing is done twice.

May ask: serve, run, choose, ops.
"""
