"""`edgedb serve`: OpenAI's and Ollama's requests, read, answered and sent over HTTP.

What reads a request and writes its answer knows no HTTP: `asked.py`, and what makes one of a body.
`app.py` is where HTTP begins.

May ask: measure, run, choose, text, model, ops, hub.
"""
