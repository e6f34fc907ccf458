"""Other methods at two bits a weight, run by their own packages on the same teacher and text.

``python -m tools.peers METHOD TEACHER OUT --text FILE`` writes a Hugging Face folder of float32
weights: what the method's two-bit weights stand for. So every method is measured by the same code,
``tools.compare``, and none by its own kernels.
"""
