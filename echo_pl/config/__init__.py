"""Configuration: composing it, checking its keys, errors as messages."""
