"""`python -m tidegate` is the `tidegate` command."""

from tidegate._cli import main

main()
