"""Loss functions: pure, computed in float32, with documented empty cases."""
