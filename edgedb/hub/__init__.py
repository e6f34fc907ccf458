"""Models on disk and on the hub: names to paths, what a repository has, how files come here.

May ask: nothing.
"""
