"""`python -m lucid`, which is how launchers start a rank."""

from lucid.cli import main

main()
