"""Thin adapters between NAVSIM and the policy: the only package that imports navsim or nuplan."""
