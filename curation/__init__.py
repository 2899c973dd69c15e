"""Curation of rollouts: which prompts to sample, which rollouts to keep, which pairs to learn from.

Values in, values out: no clock, disk, network or torch in here, and randomness is always an argument.
"""
