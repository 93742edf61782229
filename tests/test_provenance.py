"""Ids are equal exactly when recipes are equal; a change reaches every descendant and nobody else."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seechange_assets.errors import ParameterError
from seechange_assets.parameters import Field, Parameters, non_critical
from seechange_assets.provenance import Provenance, Recipes


class Depth(Parameters):
    process = "depth"
    threshold: float = Field(5.0, gt=0)
    n_workers: int = non_critical(1)


def make_graph(
    n: int, edges: list[tuple[int, int]], thresholds: dict[int, float], workers: dict[int, int] | None = None
) -> Recipes:
    """Recipes of a random graph: an edge (a, b) with a < b feeds a into b."""
    workers = workers or {}
    parameters = {f"p{i}": Depth(threshold=thresholds.get(i, 5.0), n_workers=workers.get(i, 1)) for i in range(n)}
    upstreams = {f"p{i}": tuple(sorted({f"p{a}" for a, b in edges if b == i})) for i in range(n)}
    return Recipes(parameters, upstreams)


graphs = st.integers(2, 8).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(
            st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))
            .map(lambda e: tuple(sorted(e)))
            .filter(lambda e: e[0] < e[1]),
            max_size=15,
        ),
        st.integers(0, n - 1),
    )
)


@given(graphs, st.data())
def test_changes_make_exactly_the_changed_and_their_descendants_stale(graph, data):
    """Any number of changes at once, critical and not."""
    n, edges, _ = graph
    changed = data.draw(st.sets(st.integers(0, n - 1)))
    workers = data.draw(st.dictionaries(st.integers(0, n - 1), st.integers(1, 9)))
    before, after = make_graph(n, edges, {}), make_graph(n, edges, dict.fromkeys(changed, 6.0), workers)
    stale = {name for name in before if before[name].id != after[name].id}
    expected = set(changed)
    for i in range(n):
        if any(a in expected and b == i for a, b in edges):
            expected.add(i)
    assert stale == {f"p{i}" for i in expected}
    assert stale == {name for i in changed for name in (f"p{i}", *after.descendants(f"p{i}"))}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=3)
    | st.floats(allow_nan=False, allow_infinity=False, width=32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
recipes = st.builds(
    Provenance,
    st.sampled_from(["wcs", "zp"]),
    st.sampled_from(["1", "2"]),
    st.dictionaries(st.text(max_size=2), json_values, max_size=3),
    st.lists(st.sampled_from(["a", "b", "c"]), max_size=3).map(tuple),
)


def meaning(value):
    """A value in which 5 and 5.0 are the same and 1 and true are not."""
    if isinstance(value, dict):
        return ("dict", frozenset((key, meaning(item)) for key, item in value.items()))
    if isinstance(value, list):
        return ("list", tuple(meaning(item) for item in value))
    return ("bool" if isinstance(value, bool) else "value", value)


@given(recipes, recipes, st.booleans())
def test_ids_are_equal_exactly_when_recipes_are(a, b, rewritten):
    if rewritten:  # the same recipe told in other words; random pairs are hardly ever equal
        b = Provenance(a.process, a.algorithm_version, retold(a.parameters), tuple(reversed(a.upstream_ids)))
    same = (a.process, a.algorithm_version, meaning(a.parameters), set(a.upstream_ids)) == (
        b.process, b.algorithm_version, meaning(b.parameters), set(b.upstream_ids)
    )  # fmt: skip
    assert (a.id == b.id) == same
    assert same or not rewritten


def retold(value):
    """The same value: keys in reverse order, whole numbers as floats."""
    if isinstance(value, dict):
        return {key: retold(item) for key, item in reversed(list(value.items()))}
    if isinstance(value, list):
        return [retold(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def test_ids_are_these_on_every_platform():
    """Written down once; another id for the same recipe would orphan every archive."""
    assert (
        Provenance("wcs", "1", {"radius": 2.0, "steps": ["a", "é"], "on": True}, ("x", "y")).id
        == "iwt75ngsnbsj5nbnxzig"
    )
    assert Provenance("p", "1", {}, ()).id == "hdkjg7nmmvbxphukizqw"


@given(st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False), max_size=5))
def test_id_does_not_depend_on_key_order(parameters):
    backwards = dict(reversed(list(parameters.items())))
    assert Provenance("p", "1", parameters, ("b", "a")).id == Provenance("p", "1", backwards, ("a", "b")).id


def test_id_is_the_same_in_another_process():
    provenance = Provenance("wcs", "1", {"radius": 2.0}, ("x",))
    code = "from seechange_assets.provenance import Provenance as P; print(P('wcs', '1', {'radius': 2.0}, ('x',)).id)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == provenance.id
    assert len(printed) == 20


def test_every_part_of_the_recipe_counts():
    base = Provenance("p", "1", {"a": 1}, ("u",))
    others = [
        Provenance("q", "1", {"a": 1}, ("u",)),
        Provenance("p", "2", {"a": 1}, ("u",)),
        Provenance("p", "1", {"a": 2}, ("u",)),
        Provenance("p", "1", {"a": 1}, ("v",)),
    ]
    assert len({p.id for p in [base, *others]}) == 5


def test_a_field_that_is_not_critical_stays_out():
    assert Depth(n_workers=7).critical_values() == {"threshold": 5.0}


def test_an_unknown_parameter_names_the_nearest_valid_one():
    with pytest.raises(ParameterError, match=r"did you mean 'depth\.threshold'"):
        Depth.from_overrides({"treshold": 3}, "site.yaml")


def test_an_impossible_value_says_where():
    with pytest.raises(ParameterError, match=r"site.yaml: depth.threshold: .*greater than 0.*-1"):
        Depth.from_overrides({"threshold": -1}, "site.yaml")
