"""What a near miss is answered with."""

from __future__ import annotations

from bitnet.errors import BitnetError, did_you_mean


def test_a_near_miss_is_offered_and_otherwise_the_list() -> None:
    known = ["tictactoe", "arithmetic", "baseline"]
    assert did_you_mean("arithmetik", known) == ' Did you mean "arithmetic"?'
    assert did_you_mean("zzz", known) == " There is: arithmetic, baseline, tictactoe."
    assert did_you_mean("zzz", []) == ""


def test_only_a_failed_training_is_no_fault_of_the_input() -> None:
    """The command line gives every error that a user can mend exit code 2, and TrainingFailed 1."""
    kinds = BitnetError.__subclasses__()
    assert {kind.__name__ for kind in kinds} >= {"ConfigError", "NotFoundError", "DataError", "RunError"}
    assert all(kind.__doc__ for kind in kinds)
