"""Thin: compose a config, call inrun, write one table, draw one figure. The only place that knows
Hydra.
"""
