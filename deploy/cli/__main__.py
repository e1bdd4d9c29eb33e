"""`python -m deploy.cli` is `bvblend`."""

from deploy.cli.main import main

main()
