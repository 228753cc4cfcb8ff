"""A configuration for a store: how its cases look and what a GPU holds decide every value.

`rules` has the single rules, `fit` asks the planner for the largest training step that fits, and
`proposal` puts both together and writes the file. docs/configure.md explains the choices.
"""

from segresmamba.configure.proposal import Proposal, Request, configure

__all__ = ["Proposal", "Request", "configure"]
