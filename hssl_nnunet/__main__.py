"""`python -m hssl_nnunet` is `hssl`, where the command is not on the path."""

from hssl_nnunet.cli import main

main()
