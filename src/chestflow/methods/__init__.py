"""One file per paper, found by name (see registry)."""
