"""Selectors: which of the prompts that come up are worth their rollouts.

A choice (what a user writes down) builds its selector; a selector is told of every visit and derives everything from
that. `curation.selection` asks them all in the same way.
"""
