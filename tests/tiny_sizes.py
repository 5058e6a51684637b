"""Sizes at which a test takes seconds, as Python arguments and as Hydra overrides."""

TINY_TILE = 112
"""Pixels per tile of the tiny VLM: 16 image tokens per tile in place of 256."""

TINY_HIDDEN_SIZE = 32
TINY_HIDDEN_LENGTH = 640

TINY_PLANNER = {
    "hidden_state_size": TINY_HIDDEN_SIZE,
    "num_heads": 2,
    "head_dim": 16,
    "num_layers": 2,
    "output_size": 32,
    "mlp_hidden_size": 32,
}

TINY_AGENT = [
    "agent=recogdrive_2b",
    *(f"agent.planner.{name}={value}" for name, value in TINY_PLANNER.items()),
    f"agent.vlm.hidden_length={TINY_HIDDEN_LENGTH}",
    "agent.vlm.dtype=float32",
]
"""The agent that fits the ``tiny_vlm`` fixture."""
