"""The errors as values: their tree, what they carry, and that they survive being copied or sent elsewhere."""

import copy
import pickle

import pytest

import tidegate
from tidegate import (
    BackendError,
    BackendRateLimitedError,
    BackendRejectedError,
    BackendUnavailableError,
    ConfigError,
    CostExceedsBurstError,
    DeadlineExceededError,
    InternalError,
    QueueFullError,
    RequestCancelledError,
    RequestFailedError,
    SchedulerClosedError,
    TidegateError,
)

ERRORS = [
    TidegateError("message"),
    ConfigError("message", option="cost", value=0),
    CostExceedsBurstError("message", cost=5, burst=4),
    QueueFullError("message", target="target", capacity=5),
    DeadlineExceededError("message", target="target", stage="leased", after=1.5),
    RequestCancelledError("message", target="target"),
    BackendError("message", backend="api", attempt=2),
    BackendRateLimitedError("message", backend="api", attempt=2, retry_after=1.5),
    BackendUnavailableError("message", backend="api", attempt=2),
    BackendRejectedError("message", backend="api", attempt=2),
    RequestFailedError("message", target="target", attempts=[BackendError("message", backend="api", attempt=1)]),
    SchedulerClosedError("message"),
    InternalError("message"),
]
BUILT_IN = {
    ConfigError: ValueError,
    CostExceedsBurstError: ValueError,
    DeadlineExceededError: TimeoutError,
    SchedulerClosedError: RuntimeError,
    InternalError: RuntimeError,
}


def contents(error):
    """What an error carries, errors inside it too."""
    attributes = {
        name: [contents(each) for each in value] if name == "attempts" else value for name, value in vars(error).items()
    }
    return type(error), error.args, attributes


def test_every_error_is_here():
    """Each public error is one of the tree, and is made of a message alone, too."""
    public = {getattr(tidegate, name) for name in tidegate.__all__ if name.endswith("Error")}
    assert {type(error) for error in ERRORS} == public
    for kind in public:
        assert str(kind("message")) == "message"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_tree(error):
    """Each error is a `TidegateError`, and what Python calls it where Python has the word."""
    assert isinstance(error, TidegateError)
    assert isinstance(error, BUILT_IN.get(type(error), Exception))
    assert isinstance(error, BackendError) == type(error).__name__.startswith("Backend")
    assert str(error) == "message"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("via", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301
def test_copies(error, via):
    """An error that is copied, or sent to another process, is the same error."""
    assert contents(via(error)) == contents(error)
