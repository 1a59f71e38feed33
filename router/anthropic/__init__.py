"""Anthropic's API: so far the form of its errors. Its Messages endpoint will live here."""
