"""Client of an OpenAI-compatible endpoint."""
