"""One decorator makes a Dagster asset of a plain function from products to a product.

The function names what it needs: products by the name of the asset that makes them,
``parameters`` (its own model), ``partition``, ``is_backfill``, and resources by annotation. What every
asset shares lives here: reading parameters, timing, the row that a failure leaves,
content hash as data version, key numbers, preview and checks.
"""

import inspect
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dagster as dg

from seechange_assets.assess.checks import ProductCheck
from seechange_assets.content import content_hash, freeze
from seechange_assets.errors import CheckFailed, InputNotReady, SeeChangeError
from seechange_assets.partition import ChosenByData, Partition
from seechange_assets.ports import is_resource
from seechange_assets.process import GIVEN, DataProduct
from seechange_assets.run_failures import as_failure, do_not_repeat

_AnyResource = dg.ResourceParam[Any]
#: Dagster's tag of runs that belong to a backfill.
_BACKFILL_TAG = "dagster/backfill"


def asset_of(product: DataProduct) -> dg.AssetsDefinition | dg.AssetSpec:
    """The asset of a process; only declared where no run makes it."""
    if product.function is None:
        return dg.AssetSpec(product.name, description=product.description)
    compute = _compute(product, product.function)
    compute.__signature__ = _dagster_signature(product.wanted)  # type: ignore[attr-defined]
    compute.__name__ = product.name
    return dg.asset(
        name=product.name,
        description=product.description,
        deps=[_dependency(dep) for dep in product.deps],
        io_manager_key="archive",
        output_required=not product.may_wait,
        check_specs=[check.spec(product.name) for check in product.checks],
    )(compute)


def _compute(product: DataProduct, function: Callable[..., Any]) -> Callable[..., Iterator[dg.MaterializeResult]]:
    name, wanted, checks = product.name, product.wanted, product.checks

    def compute(context: dg.AssetExecutionContext, **given: Any) -> Iterator[dg.MaterializeResult]:
        partition = Partition.of(context)
        given |= {"parameters": given["recipes"].parameters(name), "partition": partition}
        given["is_backfill"] = _BACKFILL_TAG in context.run.tags
        known = given["store"].recognised(name, partition)
        if known is not None:
            yield _recognised(name, known, given["store"], checks)
            return
        with _Attempt(context, given["store"], name, partition, product.may_wait) as attempt:
            made = freeze(function(**{key: given[key] for key in wanted}))
        if attempt.finished:
            attempt.judge(made, checks)
            yield _result(made, checks, attempt)

    return compute


def _dependency(dep: str) -> dg.AssetDep | str:
    if not isinstance(dep, ChosenByData):
        return dep
    return dg.AssetDep(str(dep), partition_mapping=dg.SpecificPartitionsPartitionMapping([]))


class _RunClock:
    """CPU time of a run with all that it costs beside its steps, in a process of its own or in a warm worker."""

    def __init__(self) -> None:
        self._run_id, self._start, self._last = "", 0.0, 0.0

    def of_run(self, run_id: str) -> float:
        """CPU seconds since the run before was last seen here, or since the process started."""
        if run_id != self._run_id:
            self._run_id, self._start = run_id, self._last
        self._last = time.process_time()
        return self._last - self._start


_clock = _RunClock()


class _Attempt:
    """Time one computation; record and translate how it ended."""

    def __init__(
        self, context: dg.AssetExecutionContext, store: Any, name: str, partition: Partition, may_wait: bool
    ) -> None:
        self._context, self._store = context, store
        self._name, self._partition, self._may_wait = name, partition, may_wait
        self.finished = False

    def __enter__(self) -> "_Attempt":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self.seconds = time.perf_counter() - self._wall
        self.cpu_seconds = time.process_time() - self._cpu
        if error is None:
            self._record("computed", None)
            self.finished = True
            return False
        if isinstance(error, InputNotReady) and self._may_wait:
            self._record("waiting", error)
            self._context.log.warning("%s waits: %s", self._name, error)
            return True
        if isinstance(error, Exception):
            self._record("failed", error)
        if isinstance(error, SeeChangeError):
            raise as_failure(error, self._context.instance, self._context.run.run_id) from error
        return False

    def judge(self, product: Any, checks: Sequence[ProductCheck]) -> None:
        """Record a failure where a blocking rule stops the partition; Dagster then runs nothing after it."""
        for check in checks:
            if check.blocking and not check.passes(product):
                self._record("failed", CheckFailed(f"{check.name}: {check.measure(product):g} > {check.limit:g}"))
                do_not_repeat(self._context.instance, self._context.run.run_id)

    def _record(self, outcome: str, error: BaseException | None) -> None:
        self._store.report(
            self._name,
            self._partition,
            outcome=outcome,
            error=error,
            run_id=self._context.run.run_id,
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            process_cpu_seconds=_clock.of_run(self._context.run.run_id),
            peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )


def _result(product: Any, checks: Sequence[ProductCheck], attempt: _Attempt) -> dg.MaterializeResult:
    from seechange_assets.assess.preview import preview_markdown

    preview = preview_markdown(product)
    metadata: dict[str, Any] = {"preview": dg.MetadataValue.md(preview)} if preview else {}
    metadata |= {"seconds": round(attempt.seconds, 3), "core_seconds": round(attempt.cpu_seconds, 3)}
    return dg.MaterializeResult(
        value=product,
        metadata=metadata,
        data_version=dg.DataVersion(content_hash(product)),
        check_results=[check.result(product) for check in checks],
    )


def _recognised(name: str, row: Any, store: Any, checks: Sequence[ProductCheck]) -> dg.MaterializeResult:
    """A product that these recipes made before: told to Dagster again, from its row, and not made again."""
    product = store.load_row(row) if checks else None
    store.materialized(name, [row.id])
    return dg.MaterializeResult(
        metadata={"recognised": True, "file": row.filepath, **row.summary},
        data_version=dg.DataVersion(row.content_hash),
        check_results=[check.result(product) for check in checks],
    )


def _dagster_signature(wanted: Any) -> inspect.Signature:
    """The context, the function's inputs and resources, and the two resources every asset needs."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = [p for p in wanted.values() if p.name not in GIVEN]
    inputs = [p.replace(kind=kind, annotation=_dagster_type(p)) for p in own]
    always = [inspect.Parameter(name, kind, annotation=_AnyResource) for name in ("recipes", "store")]
    return inspect.Signature([inspect.Parameter("context", kind), *inputs, *always])


def _dagster_type(parameter: inspect.Parameter) -> Any:
    """Resources are told; Dagster need not check the types of products."""
    return _AnyResource if is_resource(parameter.annotation) else inspect.Parameter.empty
