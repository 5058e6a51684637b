"""DiffGRPO: reinforcement learning of a diffusion planner (arXiv 2506.08052); the reward is an interface."""
