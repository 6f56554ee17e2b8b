"""Studies and commands: `python -m experiments --list`. The only place that knows Hydra."""
