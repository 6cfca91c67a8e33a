"""`python -m r2m_client.cli`: the `r2m` command of the interpreter that is asked."""

from r2m_client.cli import main

main(prog_name="r2m")
