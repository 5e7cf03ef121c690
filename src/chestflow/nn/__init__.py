"""Network building blocks. Nothing here knows about files."""
