"""The rule behind each verifier's name."""

from service.verifiers.base import REVISIONS, Rule


def rule_of(verifier: str) -> Rule:
    """Imports what the verifier needs, which is heavy: for worker processes only."""
    match verifier:
        case "math":
            from service.verifiers.math_rule import judge as math

            return math
        case "exact":
            from service.verifiers.text_rules import exact

            return exact
        case "numeric":
            from service.verifiers.text_rules import numeric

            return numeric
        case "reasoning_gym":
            from service.verifiers.gym_rule import judge as gym

            return gym
        case _:
            raise ValueError(f"there is no verifier {verifier!r}; there are {', '.join(sorted(REVISIONS))}")
