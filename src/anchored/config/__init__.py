"""Settings: every one with its type, range, default and reason; recipes."""
