"""Files: written whole or not at all, and the layout of results on disk."""
