"""Which fields may have a reference to build: those where something has come or changed, and a few others in turn.

To look at all images that qualify takes seconds where there are a hundred thousand, so a tick looks at fields that have
news. The zero point is the last product an image needs to qualify: a field has news when one was written in it. After
a flag, another recipe or a reference that is gone, and every hour, all fields are looked at, some in each tick.
"""

import hashlib
import json
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Self

import sqlalchemy as sa

from sql.models import FlagChangeRow, ImageRow, ReferenceRow, ZeroPointRow

#: All fields are looked at so often, whatever is known of them [s].
SWEEP_S = 3600.0
#: A tick goes on with that for so long [s].
MAX_SECONDS = 5.0
#: A row may become visible so long after its time was taken: it is written in a transaction [s].
_OVERLAP = sa.text("interval '120 seconds'")


@dataclass(frozen=True, slots=True)
class Seen:
    """What was known at the end of a tick.

    ``open`` fields have a reference that was requested and is not there yet; ``after`` is the last field that the look
    at all of them has reached, None when it is complete.
    """

    until: str = ""
    recipes: str = ""
    n_flag_changes: int = 0
    n_references: int = 0
    swept_at: float = 0.0
    after: str | None = None
    open: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, cursor: str | None) -> Self:
        """From the cursor of a sensor; one that is not ours says nothing."""
        try:
            return cls(**json.loads(cursor or "{}"))
        except (TypeError, ValueError):
            return cls()

    def text(self) -> str:
        """As a cursor."""
        return json.dumps(asdict(self))


class ReferenceNews:
    """The fields of one tick.

    Parameters
    ----------
    store : ReferenceStore
    selection : parameters of ``reference``
    cursor : what `cursor` gave at the tick before
    """

    def __init__(self, store: Any, selection: Any, cursor: str | None, now: float | None = None) -> None:
        self._store, self._before = store, Seen.read(cursor)
        self._now = time.time() if now is None else now
        self._ids = {name: store.of_reference_set().recipes[name].id for name in ("image", "zp")}
        with store.database.session() as session:
            self._seen = self._look(session, selection)

    def _look(self, session: Any, selection: Any) -> Seen:
        now: datetime = session.scalar(sa.select(sa.func.clock_timestamp()))
        recipes = self._store.recipes
        made_by = [recipe.id for recipe in self._store.of_reference_set().recipes.values()]
        told = json.dumps([recipes["reference"].id, made_by, selection.model_dump(mode="json")], sort_keys=True)
        references = sa.select(sa.func.count()).where(ReferenceRow.provenance_id == recipes["reference"].id)
        seen = replace(
            self._before,
            until=now.isoformat(),
            recipes=hashlib.sha256(told.encode()).hexdigest()[:20],
            n_flag_changes=session.scalar(sa.select(sa.func.max(FlagChangeRow.number))) or 0,
            n_references=session.scalar(references.select_from(ReferenceRow)) or 0,
            open=[],
        )
        before = self._before
        is_changed = seen.recipes != before.recipes or seen.n_flag_changes != before.n_flag_changes
        is_time = before.after is None and self._now - before.swept_at > SWEEP_S
        if is_changed or is_time or seen.n_references < before.n_references:
            return replace(seen, after="", swept_at=self._now)
        return seen

    def fields(self) -> Iterator[str]:
        """Fields to look at now; that of all of them ends when its time is over and goes on at the next tick."""
        first = sorted({*self._before.open, *self._news()} | ({""} if self._seen.after == "" else set()))
        yield from first
        ends = time.monotonic() + MAX_SECONDS
        while self._seen.after is not None and time.monotonic() < ends:
            following = self._next(self._seen.after)
            if following is not None and following not in first:
                yield following
            self._seen = replace(self._seen, after=following)

    def cursor(self, open_fields: Collection[str]) -> str:
        """What the next tick is to be given; `open_fields` had something to build."""
        return replace(self._seen, open=sorted(open_fields)).text()

    def _news(self) -> list[str]:
        """Fields in which a zero point was written since the tick before."""
        if not self._before.until:
            return []
        since = sa.literal(datetime.fromisoformat(self._before.until)) - _OVERLAP
        query = (
            sa.select(ImageRow.field)
            .distinct()
            .join(ZeroPointRow, sa.and_(ZeroPointRow.partition == ImageRow.partition, ZeroPointRow.ccd == ImageRow.ccd))
            .where(ImageRow.instrument == self._store.instrument, ImageRow.provenance_id == self._ids["image"])
            .where(ZeroPointRow.provenance_id == self._ids["zp"], ZeroPointRow.materialized_at > since)
        )
        with self._store.database.session() as session:
            return list(session.scalars(query))

    def _next(self, after: str) -> str | None:
        """The field after this one in the order of their names; a step in the index."""
        with self._store.database.session() as session:
            return session.scalar(sa.select(sa.func.min(ImageRow.field)).where(ImageRow.field > after))
