"""What a model is: its hyper-parameters, its family's mathematics as a program, its file, its
cache, and the network that binds a program to weights.

May ask: ops, format, text.
"""
