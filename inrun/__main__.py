"""``python -m inrun``: the command `inrun` where its script is not on the path."""

from inrun.command import main

if __name__ == "__main__":
    main()
