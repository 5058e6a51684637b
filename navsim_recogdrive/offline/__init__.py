"""A small training and scoring loop on the synthetic world, for machines without NAVSIM."""
