"""Errors keep their reason across processes, and every reason is one of the API's."""

import pickle

import pytest

from gptoss_api.conditions import TrustReason
from gptoss_weights import errors


def kinds():
    return [getattr(errors, name) for name in errors.__all__]


LEAVES = [kind for kind in kinds() if not kind.__subclasses__()]


@pytest.mark.parametrize("kind", LEAVES)
def test_reasons_are_those_of_the_api(kind):
    assert kind is errors.SigningError or kind.reason in set(TrustReason)


@pytest.mark.parametrize("kind", LEAVES)
def test_errors_survive_pickling(kind):
    again = pickle.loads(pickle.dumps(kind("what failed", file="a.json")))
    assert (type(again), str(again), again.file) == (kind, f"{kind.reason}: what failed", "a.json")


def test_the_tree_in_the_docstring_is_the_tree():
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in kinds())
