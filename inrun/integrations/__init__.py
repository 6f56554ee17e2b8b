"""Bridges to libraries that the rest of the project does not import; each file needs an extra of
its own.
"""
