"""Models on disk and where they come from: names to paths.

May ask: nothing.
"""
