"""Many streams at once: over one model in this process, or over any server of OpenAI's API."""
