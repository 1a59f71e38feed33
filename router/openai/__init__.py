"""OpenAI's API: its requests, their preparation, and its answers."""
