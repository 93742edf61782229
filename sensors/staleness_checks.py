"""What is stale, told on the asset's node of the lineage page, where Dagster itself says nothing of partitioned assets.

Each asset has a check `up_to_date` that counts its stale partitions with one query of our own tables. It is no part of
the runs that make the assets, so it costs them nothing: a sensor evaluates it without a run.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from io_managers.staleness import StaleGroup, Staleness
from sql.models import PRODUCT_ROWS

CHECK = "up_to_date"
#: Nothing is counted between these while no recipe changes: rows deleted by hand could make something stale.
RECOUNT_S = 3600.0
_DESCRIPTION = "Every partition was made by the recipe in force."


class ChecksApart(dg.AssetChecksDefinition):
    """Checks that are left out of a run that makes assets; alone they may be run.

    To Dagster a run of assets evaluates all checks of theirs, with several events each.
    """

    @staticmethod
    def dagster_internal_init(*, execution_type: Any = None, **attributes: Any) -> "ChecksApart":  # noqa: ARG004
        """A copy by Dagster of these definitions is of this class too."""
        return ChecksApart(**attributes)

    def subset_for(self, selected_asset_keys: Any, selected_asset_check_keys: Any) -> dg.AssetsDefinition:
        """The part of these checks that belongs to a run."""
        return super().subset_for(set(), set() if selected_asset_keys else selected_asset_check_keys)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many partitions of an asset are stale, and why."""

    asset: str
    n_stale: int = 0
    reason: str = ""

    @property
    def metadata(self) -> dict[str, Any]:
        """What stands beside the check."""
        if not self.n_stale:
            return {"stale partitions": 0}
        return {"stale partitions": self.n_stale, "reason": self.reason, "to make them again": "seechange backfill"}

    def result(self) -> dg.AssetCheckResult:
        """As a step gives it."""
        return dg.AssetCheckResult(asset_key=self.asset, check_name=CHECK, **self._outcome())

    def evaluation(self) -> dg.AssetCheckEvaluation:
        """As it is told without a run."""
        return dg.AssetCheckEvaluation(asset_key=dg.AssetKey(self.asset), check_name=CHECK, **self._outcome())

    def _outcome(self) -> dict[str, Any]:
        severity = dg.AssetCheckSeverity.WARN
        return {"passed": not self.n_stale, "severity": severity, "metadata": self.metadata}


def verdicts(store: Any) -> list[Verdict]:
    """One for each asset that has rows, stale or not, in the order of the pipeline."""
    with store.database.session() as session:
        groups = Staleness(session, store.recipes, store.instrument).groups()
    return [_verdict(name, [g for g in groups if g.asset == name]) for name in store.recipes if name in PRODUCT_ROWS]


def tell(instance: dg.DagsterInstance, told: Sequence[Verdict]) -> None:
    """Give Dagster these verdicts, one event each."""
    for verdict in told:
        instance.report_runless_asset_event(verdict.evaluation())


def staleness_checks(assets: Sequence[str]) -> dg.AssetsDefinition:
    """The check `up_to_date` of each asset, evaluated together."""
    specs = {f"{name}_{CHECK}": dg.AssetCheckSpec(CHECK, asset=name, description=_DESCRIPTION) for name in assets}

    @dg.op(name=CHECK, out={name: dg.Out(None, is_required=False) for name in specs})
    def evaluate(context, store: dg.ResourceParam[Any]):  # noqa: ANN001, ANN202
        wanted = {key.asset_key.path[-1] for key in context.selected_asset_check_keys}
        for verdict in verdicts(store):
            if verdict.asset in wanted:
                yield verdict.result()

    return ChecksApart(
        keys_by_input_name={},
        keys_by_output_name={},
        node_def=evaluate,
        check_specs_by_output_name=specs,
        can_subset=True,
    )


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells on each asset how many of its partitions other recipes made than those in force.",
    jobs=[],
)
def staleness(context: dg.SensorEvaluationContext, store: dg.ResourceParam[Any]) -> dg.SkipReason:
    """One tick: count where recipes have changed or something was stale; tell what is news, and what is stale.

    What is stale is told again, because Dagster shows a check only until the next materialization of its asset.
    """
    told = _Told.read(context.cursor)
    recipes = _fingerprint(store.recipes)
    if told.is_fresh(recipes, time.time()):
        return dg.SkipReason("no recipe has changed and nothing was stale")
    found = verdicts(store)
    news = [verdict for verdict in found if verdict.n_stale or told.stale.get(verdict.asset, -1) != 0]
    tell(context.instance, news)
    told = _Told(recipes, time.time(), {verdict.asset: verdict.n_stale for verdict in found})
    context.update_cursor(told.written())
    stale = [verdict for verdict in found if verdict.n_stale]
    listed = ", ".join(f"{verdict.asset} {verdict.n_stale}" for verdict in stale)
    return dg.SkipReason(f"stale: {listed}" if stale else "nothing is stale")


@dataclass(frozen=True, slots=True)
class _Told:
    """What was told last, kept in the sensor's cursor."""

    recipes: str
    at: float
    stale: Mapping[str, int]

    @classmethod
    def read(cls, cursor: str | None) -> "_Told":
        return cls(**json.loads(cursor)) if cursor else cls("", 0.0, {})

    def written(self) -> str:
        return json.dumps({"recipes": self.recipes, "at": self.at, "stale": self.stale})

    def is_fresh(self, recipes: str, now: float) -> bool:
        return self.recipes == recipes and not any(self.stale.values()) and now - self.at < RECOUNT_S


def _verdict(asset: str, groups: Sequence[StaleGroup]) -> Verdict:
    reasons = dict.fromkeys(group.reason for group in groups)
    return Verdict(asset, sum(group.n_partitions for group in groups), "; or ".join(reasons))


def _fingerprint(recipes: Mapping[str, Any]) -> str:
    told = json.dumps({name: recipe.id for name, recipe in recipes.items()}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:20]
