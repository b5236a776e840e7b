"""One module a paper: its card and its claims. Protocols that papers share are in `paperworks.papers.protocols`."""
