"""`python -m deploy.cli` is `bvblend`."""

from deploy.cli.start import main

main()
