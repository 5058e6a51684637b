"""A synthetic driving world that NAVSIM reads like a real data set."""
