"""The one fit loop, its phases, samplers and checkpoints."""
