"""``python -m fastdiff``: the command ``fastdiff``, where its script is not on the path."""

from fastdiff.cli import main

if __name__ == "__main__":
    main(prog_name="python -m fastdiff")
