"""The table of invariants: every method around every network."""

from adapters._base import AdapterTests


class TestInvariants(AdapterTests):
    pass
