"""`python -m experiments NAME [KEY=VALUE ...]`: run a study; `--list` shows all of them.

python -m experiments fidelity                          configs/fidelity.yaml, scale=cpu
python -m experiments fidelity scale=paper seeds=[0]    other settings
python -m experiments fidelity -m optim.lr=1e-3,1e-2    a sweep (launcher=joblib: at once)
python -m experiments fidelity --recompute-report       tables and figures from the measured rows
python -m experiments fidelity --help                   settings, groups, what they mean
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    # imported here: a process that the bench starts imports this module and should stay small
    from experiments.frame import commands, run
    from experiments.usage import first_line, usage

    known = commands()
    if not arguments or arguments[0] in ("--list", "-h", "--help"):
        if arguments[:1] != ["--list"]:
            print(f"{(__doc__ or '').strip()}\n")
        width = max(map(len, known))
        print("\n".join(f"{name:{width}}  {first_line(known[name])}" for name in known))
        return
    name, *rest = arguments
    if name not in known:
        sys.exit(f"there is no experiment {name!r}; choose from {', '.join(known)}")
    if {"-h", "--help"} & set(rest):
        print(usage(known[name], [a for a in rest if not a.startswith("-")]))
        return
    run(name, rest)


if __name__ == "__main__":
    main(sys.argv[1:])
