"""The only package that imports mlflow: runs, registry, gates."""
