"""The served model and the way from a file to an answer."""
