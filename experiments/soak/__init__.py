"""Runs that are stopped, spoilt and resumed at random, and a large store."""
