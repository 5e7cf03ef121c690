"""chestflow: train, compare and promote chest X-ray and CT classifiers under one DVC and MLflow harness."""

__version__ = "0.1.0"
