"""The store of a fleet over a dictionary: terms are claimed once and rise, whatever the clock says."""

import time

import pytest

from commands.fleet import store
from commands.fleet.store import FleetStore


class Dictionary:
    """Ray's store by keys of one namespace."""

    def __init__(self):
        self.values = {}

    def _internal_kv_put(self, key, value, *, overwrite=True, namespace=None):
        existed = key in self.values
        if overwrite or not existed:
            self.values[key] = value
        return existed

    def _internal_kv_get(self, key, *, namespace=None):
        return self.values.get(key)

    def _internal_kv_list(self, prefix, *, namespace=None):
        return [key for key in self.values if key.startswith(prefix)]

    def _internal_kv_del(self, key, *, namespace=None):
        self.values.pop(key, None)


def store_of(values: Dictionary) -> FleetStore:
    made = FleetStore.__new__(FleetStore)
    made._kv, made._namespace = values, b"fleet"
    return made


@pytest.mark.parametrize("now", [0.0, 1_700_000_000.0])
@pytest.mark.parametrize("above", [0, 1_800_000_000])
def test_claimed_terms_rise_above_those_of_workers_whatever_the_clock_says(monkeypatch, now, above):
    monkeypatch.setattr(time, "time", lambda: now)
    fleet = store_of(Dictionary())
    terms = [fleet.claim_term(above=above), fleet.claim_term(), fleet.claim_term(above=above)]
    assert terms == sorted(set(terms))
    assert terms[0] > above
    assert fleet.latest_term() == terms[-1]


def test_two_directors_never_claim_the_same_term(monkeypatch):
    shared = Dictionary()
    first, second = store_of(shared), store_of(shared)
    claimed = []
    latest_term = FleetStore.latest_term

    def latest_before_the_other_claims(self):
        term = latest_term(self)
        if self is first and not claimed:
            claimed.append(second.claim_term())
        return term

    monkeypatch.setattr(store.FleetStore, "latest_term", latest_before_the_other_claims)
    assert first.claim_term() > claimed[0]
