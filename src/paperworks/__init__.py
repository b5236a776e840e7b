"""paperworks: Daily Papers that run.

Each paper is carried as its method (a component that drops into the objects people already have), its own claims
as executable checks, and a page that shows the measured verdicts. Importing the package is light: torch and the rest
are imported only by the module that needs them.
"""

__version__ = "0.1.0"
