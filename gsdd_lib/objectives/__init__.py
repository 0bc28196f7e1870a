"""Objectives of dataset distillation: pure losses that know no parameterization and no loop."""
