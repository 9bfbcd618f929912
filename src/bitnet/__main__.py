"""`python -m bitnet` is `bitnet`."""

from bitnet.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
