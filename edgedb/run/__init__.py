"""A model in memory and what is done with it: sessions, requests, answers, guessed tokens, saved
sessions.

May ask: choose, model, ops, format, text, hub.
"""
