"""Laws are checked without a clock: a busy machine is no counter-example."""

from hypothesis import HealthCheck, settings

settings.register_profile("laws", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("laws")
