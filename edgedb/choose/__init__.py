"""From logits to a token: penalties, grammars, the likely candidates, and one seeded random number.
The choice is the same on every CPU.

May ask: model, ops, text.
"""
