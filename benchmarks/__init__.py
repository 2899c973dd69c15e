"""The ratios we claim, each measured against its yardstick in one run. Separate from the tests."""
