"""``python -m lossearch``."""

from lossearch.cli import main

main()
