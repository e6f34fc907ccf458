"""Between text and token ids: tokenizers, chat templates and their sandbox, what counts as quoted,
stop strings.

May ask: ops.
"""
