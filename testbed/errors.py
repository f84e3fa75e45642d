"""The two ways in which a testbed command ends badly.

They are kept apart because callers treat them differently: an unmet requirement means that this machine cannot be a
testbed at all (exit code 2, tests that need a cluster are an error of the machine), any other failure is worth a look
at the named log.
"""


class TestbedError(Exception):
    """Something failed while working; the message names the thing, the reason and where to look."""

    __test__ = False


class RequirementError(TestbedError):
    """This machine lacks something that the testbed does not install itself."""
