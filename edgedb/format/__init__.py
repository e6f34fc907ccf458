"""The bytes of a file: its container, the tensors in it and how weights are packed. Nothing here
knows what a tensor means to a model.

May ask: nothing.
"""
